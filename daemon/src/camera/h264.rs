//! H.264 from a live stream, picture by picture.

use openh264::decoder::{DecodeOptions, Decoder, Flush};
use openh264::formats::YUVSource;

/// A decoder for one stream.
pub(super) struct H264 {
    decoder: Decoder,
    /// Whether a whole picture has come; before that, errors only mean that the stream was joined
    /// between two of them.
    joined: bool,
}

/// A decoded picture: packed RGB.
pub(super) struct Decoded {
    pub width: u32,
    pub height: u32,
    pub pixels: Vec<u8>,
}

impl H264 {
    pub(super) fn new() -> Result<Self, String> {
        let decoder = Decoder::new().map_err(|e| format!("no H.264 decoder: {e}"))?;
        Ok(Self { decoder, joined: false })
    }

    /// Decodes one access unit with start codes; `None` if it completes no picture.
    pub(super) fn decode(&mut self, unit: &[u8]) -> Result<Option<Decoded>, String> {
        // Nothing may wait for later pictures: cameras send them in the order they show them.
        let options = DecodeOptions::new().flush_after_decode(Flush::Flush);
        let picture = match self.decoder.decode_with_options(unit, options) {
            Ok(picture) => picture,
            Err(_) if !self.joined => None,
            Err(error) => return Err(format!("damaged or unsupported H.264: {error}")),
        };
        let Some(picture) = picture else { return Ok(None) };
        self.joined = true;
        let (width, height) = picture.dimensions();
        let mut pixels = vec![0; picture.rgb8_len()];
        picture.write_rgb8(&mut pixels);
        Ok(Some(Decoded { width: width as u32, height: height as u32, pixels }))
    }
}
