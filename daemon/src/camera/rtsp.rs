//! IP cameras over RTSP: H.264, or JPEG.

use std::time::Duration;

use retina::client::{
    Credentials, Demuxed, PlayOptions, Session, SessionOptions, SetupOptions, Transport,
};
use retina::codec::{CodecItem, FrameFormat};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;

use super::CameraError;
use super::h264::H264;
use super::live::Reader;
use super::shot::{Layout, Shot};
use super::source::Address;
use crate::clock::Clock;

/// How long each step of the conversation, and any pause in the stream, may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Reads pictures from an RTSP server. All packets travel in its TCP connection, which no
/// firewall takes apart.
pub(super) struct RtspReader {
    address: Address,
    runtime: Runtime,
    /// There until the end.
    session: Option<Demuxed>,
    codec: Codec,
    clock: Clock,
}

enum Codec {
    H264(H264),
    Jpeg,
}

impl RtspReader {
    pub(super) fn open(address: &Address, clock: Clock) -> Result<Self, CameraError> {
        let broken = |problem: String| broken(address, &problem);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| broken(e.to_string()))?;
        let opened = runtime.block_on(async { timeout(4 * WITHIN, begin(address)).await });
        let (session, codec) = opened
            .map_err(|_| broken("it does not answer; is it switched on?".to_owned()))?
            .map_err(broken)?;
        Ok(Self { address: address.clone(), runtime, session: Some(session), codec, clock })
    }
}

/// Asks for the stream and starts it.
async fn begin(address: &Address) -> Result<(Demuxed, Codec), String> {
    let login = address.login().map(|(username, password)| Credentials {
        username: username.to_owned(),
        password: password.to_owned(),
    });
    let options = SessionOptions::default().creds(login).user_agent("pawlatch".to_owned());
    let url = address.url().parse().map_err(|e| format!("not an address: {e}"))?;
    let mut session = Session::describe(url, options).await.map_err(|e| e.to_string())?;
    let streams = session.streams();
    let found = streams.iter().enumerate().find_map(|(n, stream)| {
        match (stream.media(), stream.encoding_name()) {
            ("video", "h264") => Some((n, true)),
            ("video", "jpeg") => Some((n, false)),
            _ => None,
        }
    });
    let Some((n, h264)) = found else {
        let names: Vec<&str> = streams.iter().map(|s| s.encoding_name()).collect();
        return Err(format!(
            "it offers {}; set the camera to H.264 (not H.265)",
            if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
        ));
    };
    let codec = if h264 { Codec::H264(H264::new()?) } else { Codec::Jpeg };
    let setup = SetupOptions::default()
        .transport(Transport::Tcp(Default::default()))
        .frame_format(FrameFormat::SIMPLE);
    session.setup(n, setup).await.map_err(|e| e.to_string())?;
    let playing = session.play(PlayOptions::default()).await.map_err(|e| e.to_string())?;
    Ok((playing.demuxed().map_err(|e| e.to_string())?, codec))
}

impl Reader for RtspReader {
    fn read(&mut self) -> Result<Shot, CameraError> {
        let closed = || broken(&self.address, "it has closed the connection");
        let session = self.session.as_mut().ok_or_else(closed)?;
        loop {
            // One timer for each item, made inside the runtime.
            let next = self.runtime.block_on(async { timeout(WITHIN, session.next()).await });
            let item = match next {
                Err(_) => return Err(broken(&self.address, "it has stopped sending")),
                Ok(None) => return Err(closed()),
                Ok(Some(Err(e))) => return Err(broken(&self.address, &e.to_string())),
                Ok(Some(Ok(item))) => item,
            };
            let CodecItem::VideoFrame(frame) = item else { continue };
            let at = self.clock.now();
            let shot = |layout, width: u32, height: u32, stride, bytes| {
                Ok(Shot { layout, width, height, stride, bytes, at })
            };
            match &mut self.codec {
                Codec::Jpeg => return shot(Layout::Jpeg, 0, 0, 0, frame.into_data()),
                Codec::H264(decoder) => {
                    let decoded = decoder.decode(frame.data());
                    if let Some(d) = decoded.map_err(|e| broken(&self.address, &e))? {
                        let stride = d.width as usize * 3;
                        return shot(Layout::Rgb, d.width, d.height, stride, d.pixels);
                    }
                }
            }
        }
    }
}

impl Drop for RtspReader {
    /// The session says goodbye in the runtime it was made in.
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.session.take());
    }
}

fn broken(address: &Address, problem: &str) -> CameraError {
    CameraError::Camera { camera: address.to_string(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests;
