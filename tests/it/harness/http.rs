//! One plain HTTP request to 127.0.0.1, for the simulator's control paths.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Sends a request and gives status and body. HTTP/1.0, so that the answer ends with the
/// connection and is never chunked.
pub(crate) fn request(port: u16, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    answer(stream)
}

/// Status and body of what comes until the connection ends.
pub(crate) fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer has a head");
    let status = head.split(' ').nth(1).expect("an HTTP answer has a status");
    (status.parse().unwrap(), body.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_request_arrives_and_its_answer_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut request = [0; 1024];
            let mut length = 0;
            while !request[..length].ends_with(b"{\"n\":1}") {
                length += stream.read(&mut request[length..]).unwrap();
            }
            stream.write_all(b"HTTP/1.0 404 Not Found\r\nA: b\r\n\r\nno\r\n\r\nsuch").unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let answer = request(port, "POST", "/_sim/faults", "{\"n\":1}");
        assert_eq!(answer, (404, "no\r\n\r\nsuch".into()));
        let seen = server.join().unwrap();
        assert!(seen.starts_with("POST /_sim/faults HTTP/1.0\r\n"), "{seen}");
        assert!(seen.contains("\r\nContent-Length: 7\r\n"), "{seen}");
    }
}
