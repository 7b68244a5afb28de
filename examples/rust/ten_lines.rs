//! The ten-line client: a backend in one call, started if it does not run.
//!
//! `cargo run --example ten_lines -- redis ^7` prints `+PONG`.
#![expect(clippy::print_stdout, reason = "an example that prints what it got")]

use broker_client::Client;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let service = arguments.next().unwrap_or_else(|| "redis".to_owned());
    let version = arguments.next().unwrap_or_else(|| "*".to_owned());

    let client = Client::connect().await?;
    let mut backend = client.connect_backend(&service, &version).await?;
    backend.write_all(b"PING\r\n").await?;
    let mut answer = String::new();
    BufReader::new(&mut backend).read_line(&mut answer).await?;
    println!("{}", answer.trim_end());
    Ok(())
}
