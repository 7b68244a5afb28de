//! A process without a free descriptor cannot take a delivered socket. Alone in its binary: it lowers the limit of the
//! whole process.

use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use broker_client::{Client, Error, ProtocolError, Request};
use broker_proto::{Endpoint, Negotiated, Preamble, ServerMessage, encode_frame};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

#[tokio::test]
async fn a_socket_that_finds_no_room_in_this_process_ends_the_session() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).expect("a listener");
    let client = Client::builder().socket(&path).connect().await.expect("connected");
    let (mut server, _) = listener.accept().expect("accepted");
    let pending = client.resolve(Request::new("redis").connected());
    let server = tokio::task::spawn_blocking(move || {
        server.read_exact(&mut [0; Preamble::LENGTH]).expect("the client's preamble");
        server
    });
    let server = server.await.expect("read");

    let mut bytes = Preamble::writing(1).to_bytes().to_vec();
    let negotiated = Negotiated {
        request_id: 1,
        instance: "default".to_owned(),
        service: "redis".to_owned(),
        version: "1.0.0".to_owned(),
        endpoint: Endpoint::Unix { path: "/nowhere".to_owned() },
        generation: 1,
        pid: None,
        connected: true,
    };
    encode_frame(&ServerMessage::Negotiated(negotiated), &mut bytes).expect("a message");
    let sent: OwnedFd = listener.into();
    let numbers = [sent.as_raw_fd()];
    // Every number below the limit is taken, since the lowest free one is not below it.
    let lowest_free = server.try_clone().expect("a number").as_raw_fd();
    let limit = u64::try_from(lowest_free).expect("no negative number");
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).expect("lowered");
    let control = [ControlMessage::ScmRights(&numbers)];
    let written = sendmsg::<()>(server.as_raw_fd(), &[IoSlice::new(&bytes)], &control, MsgFlags::empty(), None);
    assert_eq!(written, Ok(bytes.len()));
    let result = pending.await;
    assert!(matches!(result, Err(Error::Protocol(ProtocolError::DescriptorsLost))), "{result:?}");
}
