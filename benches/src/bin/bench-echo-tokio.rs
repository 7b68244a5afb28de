//! The same as `bench-echo` on a current-thread tokio runtime: what the runtime itself costs.

use std::env;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::spawn_local;

fn main() {
    broker_bench::die_with_parent();
    let path = env::args_os().nth(1).expect("usage: bench-echo-tokio SOCKET");
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.expect("a runtime").block_on(async {
        let listener = UnixListener::bind(path).expect("the socket can be bound");
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            spawn_local(async move {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                    if stream.write_all(&bytes[..count]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
}
