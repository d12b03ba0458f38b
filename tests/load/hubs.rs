//! Hubs of server-sent events: exchanges as Mercure and nchan have them.

use super::*;

/// A hub: a subscriber's response goes on, and the body of each POST is passed to all.
struct Hub {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

/// What a hub says: the head of a response that goes on with its first line, an event for a message (number, payload),
/// and the answer to a publisher.
#[derive(Clone, Copy)]
struct Says {
    head: &'static str,
    event: fn(usize, &str) -> Vec<String>,
    answer: &'static str,
    payload: fn(&str) -> String,
}

/// As Mercure 0.16 (Go's HTTP server): chunks, one for each event.
const MERCURE: Says = Says {
    head: "HTTP/1.1 200 OK\r\nCache-Control: private, no-cache, no-store, must-revalidate, max-age=0\r\n\
           Connection: keep-alive\r\nContent-Type: text/event-stream\r\nPragma: no-cache\r\n\
           Transfer-Encoding: chunked\r\n\r\n2\r\n:\n\r\n",
    event: |number, payload| vec![chunk(&format!("id: urn:uuid:0-{number}\ndata: {payload}\n\n"))],
    answer: "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nurn:uuid:0-1",
    payload: |body| {
        let mut pairs = body.split('&').filter_map(|pair| pair.split_once('='));
        let (_, data) = pairs.find(|(name, _)| *name == "data").unwrap();
        decoded(data)
    },
};

/// As nchan: no chunks, a greeting, and an event in two writes.
const NCHAN: Says = Says {
    head: "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
           Connection: keep-alive\r\nCache-Control: no-cache\r\n\r\n: hi\n\n",
    event: |number, payload| {
        let event = format!("id: 1700000000:{number}\ndata: {payload}\n\n");
        let (first, second) = event.split_at(event.len() / 2);
        vec![first.to_owned(), second.to_owned()]
    },
    answer: "HTTP/1.1 201 Created\r\nContent-Type: text/plain\r\nContent-Length: 15\r\n\r\nqueued messages",
    payload: str::to_owned,
};

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}

/// Head and body of the next request; nothing when there is none.
fn request(from: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |of| of.trim().parse().unwrap())];
    from.read_exact(&mut body).ok()?;
    Some((head, String::from_utf8(body).unwrap()))
}

impl Hub {
    /// `pass`: how often message number n reaches each subscriber.
    fn start(says: Says, pass: fn(usize) -> usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, subscribers) = (Arc::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let hub = Self { port, requests: Arc::clone(&requests) };
        let count = Arc::new(AtomicUsize::new(0));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (requests, count) = (Arc::clone(&requests), Arc::clone(&count));
                let subscribers = Arc::clone(&subscribers);
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut from = BufReader::new(stream.try_clone().unwrap());
                    while let Some((head, body)) = request(&mut from) {
                        let is_subscriber = head.starts_with("GET ");
                        let requests: &Mutex<Vec<String>> = &requests;
                        requests.lock().unwrap().push(head);
                        let mut all = subscribers.lock().unwrap();
                        if is_subscriber {
                            stream.write_all(says.head.as_bytes()).unwrap();
                            all.push(stream.try_clone().unwrap());
                            continue;
                        }
                        let number = count.fetch_add(1, SeqCst) + 1;
                        for subscriber in all.iter_mut() {
                            for _ in 0..pass(number) {
                                for part in (says.event)(number, &(says.payload)(&body)) {
                                    let _ = subscriber.write_all(part.as_bytes());
                                }
                            }
                        }
                        stream.write_all(says.answer.as_bytes()).unwrap();
                    }
                });
            }
        });
        hub
    }

    fn first_line(&self, method: &str) -> String {
        let requests = self.requests.lock().unwrap();
        let found = requests.iter().find(|head| head.starts_with(method)).unwrap();
        found.lines().next().unwrap().to_owned()
    }
}

#[test]
fn mercure_is_subscribed_and_published_to() {
    let hub = Hub::start(MERCURE, |_| 1);
    let url = format!("http://127.0.0.1:{}/.well-known/mercure", hub.port);
    let (code, report) = load(&format!(
        "broadcast --protocol mercure --url {url} --bearer reader --api-key writer --subscribe news/1 \
         --connections 12 --publish 30 --rate 300"
    ));
    assert_eq!(code, 0);
    assert_messages(&report, all_fine(30, 360));
    assert_eq!(report["transport"], "sse");
    assert_eq!(hub.first_line("GET"), "GET /.well-known/mercure?topic=news%2F1 HTTP/1.1");
    assert_eq!(hub.first_line("POST"), "POST /.well-known/mercure HTTP/1.1");
    let requests = hub.requests.lock().unwrap();
    for head in requests.iter() {
        let user = if head.starts_with("GET") { "reader" } else { "writer" };
        assert!(
            head.to_lowercase().contains(&format!("authorization: bearer {user}\r\n")),
            "{head}"
        );
    }
}

#[test]
fn nchan_is_judged_as_any_other_server() {
    // 4 and the last one are lost, 6 comes twice.
    let hub = Hub::start(NCHAN, |number| match number {
        4 | 20 => 0,
        6 => 2,
        _ => 1,
    });
    let base = format!("http://127.0.0.1:{}", hub.port);
    let (code, report) = load(&format!(
        "broadcast --protocol nchan --url {base}/sub/{{channel}} --api-url {base}/pub/{{channel}} \
         --connections 5 --publish 20 --rate 200 --drain 300ms"
    ));
    assert_eq!(code, 1);
    assert_messages(
        &report,
        json!({ "sent": 20, "received": 95, "lost": 10, "duplicated": 5, "out_of_order": 0 }),
    );
    assert_eq!(hub.first_line("GET"), "GET /sub/load HTTP/1.1");
    assert_eq!(hub.first_line("POST"), "POST /pub/load HTTP/1.1");
}

#[test]
fn contradictions_of_hubs_are_refused() {
    for (args, expected) in [
        ("broadcast --protocol nchan --url http://127.0.0.1:1/sub", "{channel}"),
        ("broadcast --protocol nchan --url http://127.0.0.1:1/{channel}", "--api-url"),
        ("idle --protocol mercure --url http://127.0.0.1:1/m", "--subscribe"),
        ("echo --protocol mercure --url http://127.0.0.1:1/m", "server-sent events only"),
        (
            "broadcast --protocol mercure --transport websocket --url ws://127.0.0.1:1/",
            "events only",
        ),
        ("broadcast --url ws://127.0.0.1:1/connection/websocket --api-key k", "--api-url"),
        (
            "broadcast --url ws://127.0.0.1:1/connection/websocket --api-url http://127.0.0.1:1/api",
            "--api-key",
        ),
    ] {
        let output = start(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args}: {text}");
        assert!(text.contains(expected), "{args}: {text}");
    }
}
