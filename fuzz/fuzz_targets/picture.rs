//! Any bytes are a picture or an error, and a picture keeps its promises.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pawlatch_core::frame::{Frame, PictureWatch};
use pawlatch_core::units::Uptime;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::decode(bytes, Uptime::ZERO) {
        let expected = frame.width() as usize * frame.height() as usize * 3;
        assert_eq!(frame.pixels().len(), expected);
        PictureWatch::default().judge(&frame);
    }
});
