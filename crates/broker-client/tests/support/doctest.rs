// What the examples of the documentation run against, unseen: a broker that grants every Hello and whose processes
// succeed at once, and a redis that knows PING. Included into each example, so it names everything by its full path.

/// Runs an example with a session.
fn with_broker<F>(example: impl FnOnce(broker_client::Client) -> F)
where
    F: std::future::Future<Output = Result<(), Box<dyn std::error::Error>>>,
{
    let folder = tempfile::tempdir().expect("a folder");
    let socket = serve_a_broker(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(async {
        let client = broker_client::Client::builder().socket(socket).connect().await?;
        example(client).await
    });
    done.expect("the example works");
}

/// Serves a broker in the folder, from threads that end with the example; its socket.
fn serve_a_broker(folder: &std::path::Path) -> std::path::PathBuf {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    let (socket, redis) = (folder.join("broker.sock"), folder.join("redis.sock"));
    let listener = UnixListener::bind(&redis).expect("a socket");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut ping = [0; 6];
                while stream.read_exact(&mut ping).is_ok() && stream.write_all(b"+PONG\r\n").is_ok() {}
            });
        }
    });
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let redis = redis.clone();
            std::thread::spawn(move || {
                let mut input = broker_proto::Reassembler::default();
                let mut is_greeted = false;
                loop {
                    let mut bytes = [0; 4096];
                    match stream.read(&mut bytes) {
                        Ok(count) if count > 0 => input.space().extend_from_slice(&bytes[..count]),
                        _ => return,
                    }
                    if !is_greeted && matches!(input.preamble(), Ok(Some(_))) {
                        is_greeted = stream.write_all(&broker_proto::Preamble::writing(1).to_bytes()).is_ok();
                    }
                    while is_greeted && let Ok(Some(body)) = input.frame(broker_proto::FRAME_MAX) {
                        let hello = match broker_proto::decode(body) {
                            Ok(broker_proto::ClientMessage::Hello(hello)) => hello,
                            Ok(broker_proto::ClientMessage::Admin { request_id, request }) => {
                                let json = report(&request);
                                let mut frame = Vec::new();
                                let reply = broker_proto::ServerMessage::AdminReply { request_id, json };
                                broker_proto::encode_frame(&reply, &mut frame).expect("a short message");
                                if stream.write_all(&frame).is_err() {
                                    return;
                                }
                                continue;
                            }
                            _ => continue,
                        };
                        let granted = broker_proto::Negotiated {
                            request_id: hello.request_id,
                            instance: hello.instance,
                            service: hello.service,
                            version: "7.0.15".to_owned(),
                            endpoint: broker_proto::Endpoint::Unix { path: redis.display().to_string() },
                            generation: 1,
                            pid: Some(std::process::id()),
                            connected: false,
                        };
                        let mut frame = Vec::new();
                        let granted = broker_proto::ServerMessage::Negotiated(granted);
                        broker_proto::encode_frame(&granted, &mut frame).expect("a short message");
                        if stream.write_all(&frame).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    socket
}

/// The answer to an order, about a process that runs until somebody waits for it.
fn report(request: &broker_proto::AdminRequest) -> String {
    let process = |id: &str, facts: &str| format!("{{\"process\": {{\"id\": \"{id}\", {facts}}}}}");
    match request {
        broker_proto::AdminRequest::Run { spec } => {
            process(spec.id.as_deref().unwrap_or_default(), "\"state\": \"running\", \"attempt\": 1")
        }
        broker_proto::AdminRequest::Wait { id, .. } => process(id, "\"state\": \"succeeded\", \"exit_code\": 0"),
        broker_proto::AdminRequest::Events { .. } => {
            let event = "\"event\": \"process_ended\", \"state\": \"succeeded\", \"number\": 1, \"time\": \"\"";
            format!("{{\"events\": [{{\"process\": \"trial\", {event}}}], \"next\": \"1\", \"missed\": 0}}")
        }
        _ => "{}".to_owned(),
    }
}
