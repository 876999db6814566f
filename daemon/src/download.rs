//! A file from a path or a URL, whole and hashed before anybody looks into it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::bundle::copy_hashed;

/// How long a server may take to answer, and then to send the next bytes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a file could not be brought.
#[derive(Debug, Error)]
pub enum DownloadError {
    /// The server did not give it.
    #[error("cannot fetch {url}; check the address and the network")]
    Fetch {
        /// From where.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// It broke off.
    #[error("the download of {url} broke off; try again")]
    Broken {
        /// From where.
        url: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too large.
    #[error("{from} is larger than {limit} bytes, which nothing that belongs here is")]
    TooLarge {
        /// From where.
        from: String,
        /// The limit, bytes.
        limit: u64,
    },
    /// It is another file than wanted.
    #[error("{from} has SHA-256 {got}, but {wanted} was wanted: it is another file, or damaged")]
    Sha256 {
        /// From where.
        from: String,
        /// What was wanted.
        wanted: String,
        /// What it has.
        got: String,
    },
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens the file at `from`, a path or an `http(s)://` URL, at its beginning. A URL is downloaded
/// to the new file `part` first. With `sha256` (64 hexadecimal digits) it must have that hash.
///
/// Plain http is allowed: what comes is believed for its signature or hash, never for its way.
///
/// # Errors
/// If it cannot be had whole, has more than `limit` bytes, or another hash.
pub fn bring(
    from: &str,
    part: &Path,
    limit: u64,
    sha256: Option<&str>,
) -> Result<File, DownloadError> {
    let url = from.starts_with("http://") || from.starts_with("https://");
    let (mut file, bytes, got) = if url { fetch(from, part, limit)? } else { open(from, limit)? };
    if bytes > limit {
        return Err(DownloadError::TooLarge { from: from.to_owned(), limit });
    }
    if let Some(wanted) = sha256.filter(|wanted| !wanted.eq_ignore_ascii_case(&got)) {
        return Err(DownloadError::Sha256 {
            from: from.to_owned(),
            wanted: wanted.to_owned(),
            got,
        });
    }
    let path = if url { part } else { Path::new(from) };
    file.rewind().map_err(|source| DownloadError::File { path: path.to_owned(), source })?;
    Ok(file)
}

fn open(path: &str, limit: u64) -> Result<(File, u64, String), DownloadError> {
    let failed = |source| DownloadError::File { path: path.into(), source };
    let mut file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    let (bytes, sha256) =
        copy_hashed(&mut (&mut file).take(limit + 1), &mut io::sink()).map_err(failed)?;
    Ok((file, bytes, sha256))
}

fn fetch(url: &str, part: &Path, limit: u64) -> Result<(File, u64, String), DownloadError> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .build()
        .into();
    let mut response = agent
        .get(url)
        .call()
        .map_err(|e| DownloadError::Fetch { url: url.to_owned(), source: Box::new(e) })?;
    let promised = response.body().content_length();
    if promised.is_some_and(|bytes| bytes > limit) {
        return Err(DownloadError::TooLarge { from: url.to_owned(), limit });
    }
    let failed = |source| DownloadError::File { path: part.to_owned(), source };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(part)
        .map_err(failed)?;
    let mut body = response.body_mut().with_config().limit(limit + 1).reader();
    let (bytes, sha256) = copy_hashed(&mut body, &mut file).map_err(|source| {
        // A full disk is not the server's fault.
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::QuotaExceeded => failed(source),
            _ => DownloadError::Broken { url: url.to_owned(), source },
        }
    })?;
    if promised.is_some_and(|promised| promised != bytes) {
        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(DownloadError::Broken { url: url.to_owned(), source });
    }
    file.flush().map_err(failed)?;
    Ok((file, bytes, sha256))
}
