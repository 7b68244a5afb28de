//! The same answers from `/proc/net`, for sandboxes and kernels without `sock_diag`.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use super::{Listener, TCP_ESTABLISHED, TCP_LISTEN};

/// One line of `/proc/net/tcp` or `tcp6`.
struct Row {
    /// 8 or 32 hexadecimal digits, each four bytes in the machine's order.
    address: String,
    port: u16,
    state: u8,
    uid: u32,
    inode: u64,
}

impl Row {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, port) = fields.get(1)?.split_once(':')?;
        Some(Self {
            address: address.to_owned(),
            port: u16::from_str_radix(port, 16).ok()?,
            state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
            uid: fields.get(7)?.parse().ok()?,
            inode: fields.get(9)?.parse().ok()?,
        })
    }
}

fn rows(file: &str) -> io::Result<Vec<Row>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().skip(1).filter_map(Row::parse).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The file does not tell a `[::]` that is for IPv6 only from one for both; it is taken for both.
pub(super) fn listener(address: Ipv4Addr, port: u16) -> io::Result<Option<Listener>> {
    let four = |address: Ipv4Addr| format!("{:08X}", u32::from_ne_bytes(address.octets()));
    let rows: Vec<Row> = rows("/proc/net/tcp")?.into_iter().chain(rows("/proc/net/tcp6")?).collect();
    let mapped = format!("0000000000000000{:08X}{}", u32::from_ne_bytes([0, 0, 0xff, 0xff]), four(address));
    let in_order = [four(address), mapped, four(Ipv4Addr::UNSPECIFIED), "0".repeat(32)];
    Ok(in_order.iter().find_map(|address| {
        let found = rows.iter().find(|row| row.state == TCP_LISTEN && row.port == port && row.address == *address)?;
        Some(Listener { inode: found.inode, uid: found.uid })
    }))
}

pub(super) fn established_tcp(port: u16) -> io::Result<usize> {
    let rows = rows("/proc/net/tcp")?.into_iter().chain(rows("/proc/net/tcp6")?);
    Ok(rows.filter(|row| row.state == TCP_ESTABLISHED && row.port == port).count())
}

/// The states (`St`) of the sockets of that name.
fn unix_states(path: &Path) -> io::Result<Vec<String>> {
    let Some(path) = path.to_str() else { return Ok(Vec::new()) };
    let text = String::from_utf8_lossy(&fs::read("/proc/net/unix")?).into_owned();
    let state = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(5);
        let state = fields.next()?.to_owned();
        // The path is the last field and may hold spaces.
        line.strip_suffix(path)?.ends_with(' ').then_some(state)
    };
    Ok(text.lines().skip(1).filter_map(state).collect())
}

pub(super) fn established_unix(path: &Path) -> io::Result<usize> {
    // SS_CONNECTED
    Ok(unix_states(path)?.iter().filter(|state| *state == "03").count())
}

pub(super) fn is_bound_unix(path: &Path) -> io::Result<bool> {
    Ok(!unix_states(path)?.is_empty())
}
