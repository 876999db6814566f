//! IP cameras over HTTP: MJPEG (`multipart/x-mixed-replace`), or one JPEG for each request.

use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use ureq::{Agent, Body, BodyReader};

use super::CameraError;
use super::live::Reader;
use super::pipe::next_jpeg;
use super::shot::{Layout, Shot};
use super::source::Address;
use crate::clock::Clock;

/// How long connecting, and any pause in the stream, may take.
const WITHIN: Duration = Duration::from_secs(4);
/// Time from one request to the next where each gives one picture.
const SNAPSHOT_EVERY: Duration = Duration::from_millis(200);
/// Largest picture, bytes.
const MAX_PICTURE: u64 = 16 << 20;

/// Reads pictures from a web server.
pub(super) struct HttpReader {
    address: Address,
    agent: Agent,
    clock: Clock,
    stream: Stream,
}

enum Stream {
    /// JPEGs, one behind the other, and what was read of them and not given out. Whatever stands
    /// between them is passed over, so that it does not matter how a camera writes its parts.
    Jpegs(Box<BodyReader<'static>>, Vec<u8>),
    /// One picture for each request; the first is there already.
    Snapshots { first: Option<Vec<u8>>, due: Instant },
}

impl HttpReader {
    pub(super) fn open(address: &Address, clock: Clock) -> Result<Self, CameraError> {
        let agent = Agent::config_builder()
            .timeout_connect(Some(WITHIN))
            .timeout_recv_response(Some(WITHIN))
            .timeout_per_read(Some(WITHIN))
            .http_status_as_error(false)
            .user_agent("pawlatch")
            .build()
            .new_agent();
        let body = get(&agent, address)?;
        let kind = body.mime_type().unwrap_or_default().to_owned();
        let stream = match kind.as_str() {
            "multipart/x-mixed-replace" | "multipart/mixed" | "video/x-motion-jpeg" => {
                Stream::Jpegs(Box::new(body.into_reader()), Vec::new())
            }
            "image/jpeg" | "image/jpg" => {
                let first = Some(whole(body).map_err(|e| broken(address, e.to_string()))?);
                Stream::Snapshots { first, due: Instant::now() + SNAPSHOT_EVERY }
            }
            other => {
                let problem = format!(
                    "it gives \"{other}\"; expected MJPEG (multipart/x-mixed-replace) or \
                     image/jpeg. For H.264 use its rtsp:// address"
                );
                return Err(broken(address, problem));
            }
        };
        Ok(Self { address: address.clone(), agent, clock, stream })
    }

    fn read_jpeg(&mut self) -> Result<Vec<u8>, CameraError> {
        match &mut self.stream {
            Stream::Jpegs(body, held) => {
                next_jpeg(body, held).map_err(|e| broken(&self.address, e.to_string()))
            }
            Stream::Snapshots { first, due } => {
                if let Some(first) = first.take() {
                    return Ok(first);
                }
                thread::sleep(due.saturating_duration_since(Instant::now()));
                *due = Instant::now() + SNAPSHOT_EVERY;
                let body = get(&self.agent, &self.address)?;
                whole(body).map_err(|e| broken(&self.address, e.to_string()))
            }
        }
    }
}

impl Reader for HttpReader {
    fn read(&mut self) -> Result<Shot, CameraError> {
        let bytes = self.read_jpeg()?;
        let at = self.clock.now();
        Ok(Shot { layout: Layout::Jpeg, width: 0, height: 0, stride: 0, bytes, at })
    }
}

fn get(agent: &Agent, address: &Address) -> Result<Body, CameraError> {
    let mut request = agent.get(address.url());
    if let Some((user, password)) = address.login() {
        let login = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        request = request.header("Authorization", format!("Basic {login}"));
    }
    let answer = request.call().map_err(|e| broken(address, format!("{e}; is it switched on?")))?;
    match answer.status().as_u16() {
        200 => Ok(answer.into_body()),
        401 | 403 => Err(broken(
            address,
            "user or password is wrong: write http://USER:PASSWORD@HOST/… (Basic login)".to_owned(),
        )),
        code => Err(broken(address, format!("it answers {code}; is the path right?"))),
    }
}

fn whole(body: Body) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    body.into_reader().take(MAX_PICTURE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn broken(address: &Address, problem: String) -> CameraError {
    CameraError::Camera { camera: address.to_string(), problem }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use super::super::Source;
    use super::super::source::LiveSource;
    use super::*;

    fn jpeg(level: u8) -> Vec<u8> {
        let mut jpeg = Vec::new();
        let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([level; 3]));
        image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode_image(&picture).unwrap();
        jpeg
    }

    /// Serves each connection with the next of `answers`; tells the requests.
    fn server(
        answers: Vec<fn(&mut TcpStream) -> io::Result<()>>,
    ) -> (String, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            for answer in answers {
                let (mut peer, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && peer.read(&mut byte).unwrap() == 1 {
                    request.push(byte[0]);
                }
                let _ = tell.send(String::from_utf8(request).unwrap());
                // The reader may go away first.
                let _ = answer(&mut peer);
            }
        });
        (address, told)
    }

    fn open(url: &str) -> Result<HttpReader, CameraError> {
        match url.parse().unwrap() {
            Source::Live(LiveSource::Http(address)) => HttpReader::open(&address, Clock::start()),
            other => panic!("{other} is no web address"),
        }
    }

    #[test]
    fn mjpeg_is_read_whatever_stands_between_the_pictures() {
        fn stream(peer: &mut TcpStream) -> io::Result<()> {
            peer.write_all(
                b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n",
            )?;
            for level in [10, 200] {
                let picture = jpeg(level);
                let head = format!("--b\r\nContent-Length: {}\r\n\r\n", picture.len());
                peer.write_all(head.as_bytes())?;
                peer.write_all(&picture)?;
                peer.write_all(b"\r\n")?;
            }
            Ok(())
        }
        let (address, requests) = server(vec![stream]);
        let mut reader = open(&format!("http://door:s%40fe@{address}/video?n=1")).unwrap();
        for level in [10, 200] {
            assert_eq!(reader.read().unwrap().bytes, jpeg(level));
        }
        assert!(reader.read().is_err(), "the stream has ended");
        let request = requests.recv().unwrap();
        assert!(request.starts_with("GET /video?n=1 "), "{request}");
        let login = base64::engine::general_purpose::STANDARD.encode("door:s@fe");
        assert!(request.contains(&login), "{request}");
    }

    #[test]
    fn snapshots_are_asked_for_again_and_again() {
        fn snapshot(peer: &mut TcpStream) -> io::Result<()> {
            let picture = jpeg(99);
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n",
                picture.len()
            );
            peer.write_all(head.as_bytes())?;
            peer.write_all(&picture)
        }
        let (address, _requests) = server(vec![snapshot; 3]);
        let mut reader = open(&format!("http://{address}/snap.jpg")).unwrap();
        for _ in 0..3 {
            assert_eq!(reader.read().unwrap().bytes, jpeg(99));
        }
    }

    #[test]
    fn what_is_no_camera_gets_one_error_without_the_password() {
        fn page(peer: &mut TcpStream) -> io::Result<()> {
            peer.write_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>")
        }
        fn login(peer: &mut TcpStream) -> io::Result<()> {
            peer.write_all(b"HTTP/1.0 401 No\r\nContent-Length: 0\r\n\r\n")
        }
        fn lost(peer: &mut TcpStream) -> io::Result<()> {
            peer.write_all(b"HTTP/1.0 404 No\r\nContent-Length: 0\r\n\r\n")
        }
        let (address, _requests) = server(vec![page, login, lost]);
        for part in ["rtsp://", "user or password", "404"] {
            let error = open(&format!("http://me:topsecret@{address}/")).map(|_| ());
            let told = error.unwrap_err().to_string();
            assert!(told.contains(part) && !told.contains("topsecret"), "{told}");
        }
        let gone = open("http://127.0.0.1:1/x").map(|_| ()).unwrap_err().to_string();
        assert!(gone.contains("switched on"), "{gone}");
    }

    #[test]
    fn a_stream_that_stalls_is_an_error_and_no_wait_for_ever() {
        fn stalls(peer: &mut TcpStream) -> io::Result<()> {
            peer.write_all(
                b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n",
            )?;
            peer.write_all(&jpeg(1)[..40])?;
            thread::sleep(Duration::from_secs(20));
            Ok(())
        }
        let (address, _requests) = server(vec![stalls]);
        let mut reader = open(&format!("http://{address}/")).unwrap();
        let started = Instant::now();
        assert!(reader.read().is_err());
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}
