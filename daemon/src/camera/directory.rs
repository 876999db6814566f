//! A directory of pictures, played in name order.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::vec;

use pawlatch_core::frame::Frame;

use super::{CameraError, FrameSource, frame_time};

/// Endings of the files that count as pictures; others are passed over.
const ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "gif", "bmp", "webp"];

/// Plays the pictures of a directory at a fixed rate.
///
/// Name order is that of a person: digits count as numbers, so `frame9` comes before `frame10`.
/// Names padded with zeros come out the same as in plain alphabetic order.
#[derive(Debug)]
pub struct DirectorySource {
    files: vec::IntoIter<PathBuf>,
    fps: f32,
    played: u64,
}

impl DirectorySource {
    /// The pictures in `dir` at `fps` frames per second.
    ///
    /// # Errors
    /// If the directory cannot be read or holds no picture.
    pub fn open(dir: &Path, fps: f32) -> Result<Self, CameraError> {
        let files = pictures(dir)?;
        if files.is_empty() {
            return Err(CameraError::Empty { path: dir.to_owned() });
        }
        Ok(Self { files: files.into_iter(), fps, played: 0 })
    }
}

impl FrameSource for DirectorySource {
    fn next(&mut self) -> Result<Option<Frame>, CameraError> {
        let Some(path) = self.files.next() else { return Ok(None) };
        let at = frame_time(self.played, self.fps);
        self.played += 1;
        let bytes =
            fs::read(&path).map_err(|source| CameraError::Read { path: path.clone(), source })?;
        let frame =
            Frame::decode(bytes, at).map_err(|source| CameraError::Picture { path, source })?;
        Ok(Some(frame))
    }
}

/// The pictures directly in `dir`, in name order; hidden files are passed over.
fn pictures(dir: &Path) -> Result<Vec<PathBuf>, CameraError> {
    let failed = |source| CameraError::Read { path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if !hidden && ending.is_some_and(|e| ENDINGS.contains(&e.as_str())) && path.is_file() {
            files.push(path);
        }
    }
    files.sort_by(|a, b| by_name(&name(a), &name(b)));
    Ok(files)
}

fn name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Compares names with runs of digits as numbers; equal numbers by the rest of the name, and at
/// last plainly, so that the order is total.
pub(super) fn by_name(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(&p), Some(&q)) = (x.first(), y.first()) else {
            return x.len().cmp(&y.len()).then_with(|| a.cmp(b));
        };
        if p.is_ascii_digit() && q.is_ascii_digit() {
            let (m, n) = (number(&mut x), number(&mut y));
            match m.len().cmp(&n.len()).then_with(|| m.cmp(n)) {
                Ordering::Equal => {}
                order => return order,
            }
        } else if p != q {
            return p.cmp(&q);
        } else {
            (x, y) = (&x[1..], &y[1..]);
        }
    }
}

/// Takes the digits at the front; returns them without leading zeros.
fn number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    let zeros = digits.iter().take_while(|c| **c == b'0').count();
    &digits[zeros..]
}
