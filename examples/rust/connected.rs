//! A client that is handed a socket which the broker connected: it works where the endpoint's path cannot be seen, as in
//! a container that has nothing but the broker's socket.
//!
//! `cargo run --example connected -- redis ^7` prints where redis listens, and `+PONG`.
#![expect(clippy::print_stdout, reason = "an example that prints what it got")]

use broker_client::{Client, Request};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let service = arguments.next().unwrap_or_else(|| "redis".to_owned());
    let version = arguments.next().unwrap_or_else(|| "*".to_owned());

    let client = Client::connect().await?;
    let held = client.resolve(Request::new(service).version(version).connected()).await?;
    println!("{}", held.endpoint());
    let mut backend = held.connect().await?;
    backend.write_all(b"PING\r\n").await?;
    let mut answer = String::new();
    BufReader::new(&mut backend).read_line(&mut answer).await?;
    println!("{}", answer.trim_end());
    Ok(())
}
