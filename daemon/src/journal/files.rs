//! Pictures and recordings as files under one budget.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat};
use pawlatch_core::frame::Frame;
use rusqlite::Connection;

use super::JournalError;

/// Directory of the files in the journal's directory.
pub(super) const DIR: &str = "files";
/// Ending of files that are being written.
const PART: &str = "part";
/// Quality of pictures that have to be encoded: hardly to be told from the original.
const JPEG_QUALITY: u8 = 92;

/// The directory of files and its budget.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    budget: u64,
}

impl Files {
    /// Opens the directory and removes what a crash left there without a row in the database.
    pub(super) fn open(
        journal_dir: &Path,
        budget: u64,
        connection: &Connection,
    ) -> Result<Self, JournalError> {
        let dir = journal_dir.join(DIR);
        let failed = |action, source| JournalError::File { action, path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(|e| failed("make the directory", e))?;
        let files = Self { dir, budget };
        files.sweep(connection)?;
        Ok(files)
    }

    /// Removes files without a row in the database.
    pub(super) fn sweep(&self, connection: &Connection) -> Result<(), JournalError> {
        let dir = &self.dir;
        let failed = |action, source| JournalError::File { action, path: dir.clone(), source };
        let known: HashSet<String> = connection
            .prepare("SELECT name FROM files")
            .and_then(|mut names| names.query_map([], |row| row.get(0))?.collect())
            .map_err(|source| JournalError::Database { path: dir.clone(), source })?;
        for entry in fs::read_dir(dir).map_err(|e| failed("list", e))? {
            let entry = entry.map_err(|e| failed("list", e))?;
            if !known.contains(entry.file_name().to_string_lossy().as_ref()) {
                tracing::debug!(file = %entry.path().display(), "left over by a crash; removed");
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Writes `bytes` to `name`, whole or not at all, and onto the disk.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), JournalError> {
        let path = self.dir.join(name);
        let part = self.dir.join(format!("{name}.{PART}"));
        let written = File::create(&part)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&part, &path))
            .and_then(|()| File::open(&self.dir)?.sync_all());
        written.map_err(|source| {
            let _ = fs::remove_file(&part);
            JournalError::File { action: "write", path, source }
        })
    }

    /// Removes the files of the oldest approaches until the rest is within the budget.
    pub(super) fn evict(
        &self,
        connection: &mut Connection,
        database: &Path,
    ) -> Result<(), JournalError> {
        let failed = |source| JournalError::Database { path: database.to_owned(), source };
        loop {
            let total: i64 = connection
                .query_row("SELECT coalesce(sum(bytes), 0) FROM files", [], |row| row.get(0))
                .map_err(failed)?;
            if total as u64 <= self.budget {
                return Ok(());
            }
            let transaction = connection.transaction().map_err(failed)?;
            let names: Vec<String> = transaction
                .prepare_cached(
                    "DELETE FROM files WHERE approach = (SELECT min(approach) FROM files)
                     RETURNING name",
                )
                .and_then(|mut rows| rows.query_map([], |row| row.get(0))?.collect())
                .map_err(failed)?;
            transaction.commit().map_err(failed)?;
            // Should the program end here, the files are removed at the next start.
            for name in &names {
                let _ = fs::remove_file(self.dir.join(name));
            }
            tracing::debug!(files = names.len(), "oldest approach evicted");
        }
    }
}

/// A picture as a file, and the file's ending: the bytes it came in if it has them.
pub(super) fn encoded(frame: &Frame) -> (Cow<'_, [u8]>, &'static str) {
    if let Some(bytes) = frame.encoded() {
        let ending = match image::guess_format(bytes) {
            Ok(ImageFormat::Jpeg) => "jpg",
            Ok(ImageFormat::Png) => "png",
            Ok(ImageFormat::Gif) => "gif",
            Ok(ImageFormat::Bmp) => "bmp",
            Ok(ImageFormat::WebP) => "webp",
            _ => "bin",
        };
        return (Cow::Borrowed(bytes), ending);
    }
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY);
    let (width, height) = (frame.width(), frame.height());
    match encoder.encode(frame.pixels(), width, height, ExtendedColorType::Rgb8) {
        Ok(()) => (Cow::Owned(jpeg), "jpg"),
        // A frame is never larger than a JPEG can be; kept raw rather than not at all.
        Err(_) => (Cow::Borrowed(frame.pixels()), "bin"),
    }
}
