//! Against a small RTSP server: one client, one H.264 track, packets within the TCP connection.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use base64::Engine as _;
use openh264::encoder::Encoder;
use openh264::formats::{RgbSliceU8, YUVBuffer};

use super::super::Source;
use super::super::shot::Mounting;
use super::super::source::LiveSource;
use super::*;

const SIDE: usize = 64;

/// One picture a level, as NAL units without start codes: parameters and slices.
fn coded(levels: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut encoder = Encoder::new().unwrap();
    levels
        .iter()
        .map(|level| {
            let rgb = vec![*level; SIDE * SIDE * 3];
            let yuv = YUVBuffer::from_rgb_source(RgbSliceU8::new(&rgb, (SIDE, SIDE)));
            let stream = encoder.encode(&yuv).unwrap().to_vec();
            split(&stream)
        })
        .collect()
}

/// NAL units of a stream with start codes.
fn split(stream: &[u8]) -> Vec<Vec<u8>> {
    let mut starts = Vec::new();
    for (n, code) in stream.windows(3).enumerate() {
        if code == [0, 0, 1] {
            starts.push(n + 3);
        }
    }
    let ends = starts.iter().skip(1).map(|start| start - 3).chain([stream.len()]);
    let unit = |(start, end): (&usize, usize)| {
        let unit = &stream[*start..end];
        let length = unit.iter().rposition(|byte| *byte != 0).map_or(0, |n| n + 1);
        unit[..length].to_vec()
    };
    starts.iter().zip(ends).map(unit).collect()
}

/// Answers the four questions and sends the pictures, each unit in a packet of its own (RFC 6184).
fn serve(listener: &TcpListener, pictures: &[Vec<Vec<u8>>], encoding: &str) {
    let (mut peer, _) = listener.accept().unwrap();
    let kind = |wanted: u8| pictures[0].iter().find(|unit| unit[0] & 31 == wanted).unwrap();
    let base64 = |unit: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(unit);
    let sdp = format!(
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=door\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n\
         a=rtpmap:96 {encoding}/90000\r\na=fmtp:96 packetization-mode=1;sprop-parameter-sets={},{}\r\n\
         a=control:track1\r\n",
        base64(kind(7)),
        base64(kind(8))
    );
    let mut reader = BufReader::new(peer.try_clone().unwrap());
    while let Some((method, url, cseq)) = request(&mut reader) {
        let answer = match method.as_str() {
            "DESCRIBE" => format!(
                "Content-Type: application/sdp\r\nContent-Base: {url}/\r\nContent-Length: {}\r\n\r\n{sdp}",
                sdp.len()
            ),
            "SETUP" => "Transport: RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=1\r\n\
                        Session: 7\r\n\r\n"
                .to_owned(),
            "PLAY" => format!("Session: 7\r\nRTP-Info: url={url}/track1;seq=1;rtptime=0\r\n\r\n"),
            _ => "\r\n".to_owned(),
        };
        write!(peer, "RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\n{answer}").unwrap();
        if method == "PLAY" {
            send(&mut peer, pictures);
            return;
        }
    }
}

fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, String, String)> {
    let (mut first, mut cseq) = (String::new(), String::new());
    reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("cseq:") {
            cseq = value.trim().to_owned();
        }
    }
    let mut words = first.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.to_owned(), cseq))
}

fn send(peer: &mut TcpStream, pictures: &[Vec<Vec<u8>>]) {
    let mut sequence = 1_u16;
    for (n, units) in pictures.iter().enumerate() {
        for (k, unit) in units.iter().enumerate() {
            let last = k + 1 == units.len();
            let mut packet = vec![0x80, 96 | if last { 0x80 } else { 0 }];
            packet.extend(sequence.to_be_bytes());
            packet.extend((n as u32 * 9_000).to_be_bytes());
            packet.extend(1_u32.to_be_bytes());
            packet.extend(unit);
            let length = u16::try_from(packet.len()).unwrap();
            let head = [b'$', 0, (length >> 8) as u8, length as u8];
            if peer.write_all(&[&head[..], &packet].concat()).is_err() {
                return;
            }
            sequence += 1;
        }
    }
}

fn address(port: u16) -> Address {
    match format!("rtsp://door:secret@127.0.0.1:{port}/live").parse().unwrap() {
        Source::Live(LiveSource::Rtsp(address)) => address,
        other => panic!("{other} is no RTSP address"),
    }
}

#[test]
fn h264_over_rtsp_is_decoded_picture_by_picture() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let levels = [40, 90, 200];
    let server = thread::spawn(move || serve(&listener, &coded(&levels), "H264"));
    let mut reader = RtspReader::open(&address(port), Clock::start()).unwrap();
    for level in levels {
        let shot = reader.read().unwrap();
        let frame = shot.into_frame(Mounting::default()).unwrap();
        assert_eq!((frame.width(), frame.height()), (SIDE as u32, SIDE as u32));
        let middle = frame.pixels()[SIDE * SIDE * 3 / 2];
        assert!(middle.abs_diff(level) <= 6, "{middle} instead of {level}");
    }
    assert!(reader.read().is_err(), "the server has gone");
    server.join().unwrap();
}

#[test]
fn a_camera_without_h264_is_told_what_to_set() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || serve(&listener, &coded(&[1]), "H265"));
    let error = RtspReader::open(&address(port), Clock::start()).map(|_| ()).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("H.264") && !told.contains("secret"), "{told}");
}

#[test]
fn a_camera_that_is_not_there_is_told_at_once() {
    let error = RtspReader::open(&address(1), Clock::start()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}
