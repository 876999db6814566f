//! The capture thread: plays a source in real time into a one-slot channel.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pawlatch_core::frame::Frame;

use super::{CameraError, FrameSource};
use crate::clock::Clock;
use crate::ordeal::panic_if_asked;
use crate::slot::Sender;

/// Starts a thread that gives each frame of `source` when it is due, stamped with `clock`; a
/// camera's as it comes. It ends when the source ends or fails, or when nobody takes the frames any more; the slot then
/// closes. The newest frame wins: one that was not taken in time is lost, as with any camera.
///
/// # Errors
/// If the thread cannot be started.
pub fn capture(
    mut source: Box<dyn FrameSource>,
    clock: Clock,
    frames: Sender<Frame>,
) -> std::io::Result<JoinHandle<Result<(), CameraError>>> {
    thread::Builder::new().name("capture".to_owned()).spawn(move || {
        let frames = Arc::new(frames);
        let shutter = Arc::clone(&frames);
        source.until(Box::new(move || shutter.is_closed()));
        let started = clock.now();
        while let Some(frame) = source.next()? {
            panic_if_asked("capture");
            if source.is_live() {
                if !frames.put(frame) {
                    return Ok(());
                }
                continue;
            }
            let due = started + Duration::from_millis(frame.captured_at().as_millis());
            let early = due.since(clock.now());
            // Slept in short pieces, so that the end of the program need not wait for a pause
            // in a recording.
            let mut left = early;
            while !left.is_zero() {
                let piece = left.min(Duration::from_millis(100));
                thread::sleep(piece);
                left -= piece;
                if frames.is_closed() {
                    return Ok(());
                }
            }
            if !frames.put(frame.at(clock.now())) {
                return Ok(());
            }
        }
        Ok(())
    })
}
