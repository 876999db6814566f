//! The bundle: one signed file that carries a model or a program to a door. docs/updates.md
//! describes the format for whoever makes one.
//!
//! ```text
//! NAME-VERSION.tar.gz
//!   bundle.toml            what is in it: name, version, every file's size and SHA-256
//!   bundle.toml.minisig    minisign signature of bundle.toml
//!   …                      the files, in the order of bundle.toml
//! ```
//!
//! The signature covers `bundle.toml`, and `bundle.toml` pins every byte of the files; so a bundle
//! is believed or refused before a byte of its files is written, and whatever was unpacked can be
//! verified again at any later time.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use minisign_verify::{PublicKey, Signature};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Version of the format that is read and written.
pub const FORMAT: u32 = 1;
/// Name of the manifest in a bundle, and beside the files that were unpacked.
pub const MANIFEST_FILE: &str = "bundle.toml";
/// Name of the manifest's signature.
pub const SIGNATURE_FILE: &str = "bundle.toml.minisig";
/// Most that the files of a bundle may take together, bytes.
pub const MAX_BYTES: u64 = 1 << 30;
/// Largest manifest, bytes.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// Largest signature, bytes.
const MAX_SIGNATURE_BYTES: u64 = 4 << 10;
/// Most files in a bundle.
const MAX_FILES: usize = 32;
/// What stays free on a disk beside a bundle's files, bytes: the door records while it is updated.
const RESERVE_BYTES: u64 = 16 << 20;

/// Why a bundle is refused. Nothing of it is used then.
#[derive(Debug, Error)]
pub enum BundleError {
    /// It is no `.tar.gz`, damaged, or cut short.
    #[error("the bundle is damaged or cut short; fetch it again")]
    Archive(#[source] io::Error),
    /// What comes next in the archive is not what must come next.
    #[error("the bundle holds {found} where {expected} must be; see docs/updates.md")]
    Order {
        /// What must be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The manifest cannot be understood.
    #[error("the bundle's {MANIFEST_FILE} is wrong: {0}")]
    Manifest(String),
    /// It is of a format of the future.
    #[error("the bundle has format {0}; this program reads format {FORMAT}: update it first")]
    Format(u32),
    /// Nobody signed it, and its hash was not given.
    #[error(
        "the bundle is not signed, and no SHA-256 was given for it; sign it with minisign, or \
         give --sha256 if you know the hash from its maker"
    )]
    Unsigned,
    /// There is no key to believe.
    #[error(
        "the bundle is signed, but no key is trusted; write the maker's minisign key into \
         update.public_keys, or give --sha256"
    )]
    NoKey,
    /// The signature is by a stranger or does not fit.
    #[error("the bundle's signature is not by any trusted key, or does not fit: {0}")]
    Signature(String),
    /// The hash is not the one that was given.
    #[error("the bundle has SHA-256 {got}, but {wanted} was wanted; fetch it again")]
    Pin {
        /// What was given.
        wanted: String,
        /// What it has.
        got: String,
    },
    /// A file in it is not the one its manifest describes.
    #[error("the file {name} is not the one that was signed; fetch the bundle again")]
    Content {
        /// Which.
        name: String,
    },
    /// There is no room for it.
    #[error(
        "{} has {free_mb} MB free, the bundle needs {needed_mb} MB; free some (events: \
         journal.budget_mb)", path.display()
    )]
    NoSpace {
        /// Where it was to go.
        path: PathBuf,
        /// What is free.
        free_mb: u64,
        /// What is needed.
        needed_mb: u64,
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

/// A version: three numbers, compared one after another. Later ones may be left out and are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version([u32; 3]);

impl std::str::FromStr for Version {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no version; expected numbers such as 1.4.0");
        let mut numbers = [0; 3];
        let parts: Vec<&str> = text.split('.').collect();
        if parts.len() > numbers.len() {
            return Err(wrong());
        }
        for (number, part) in numbers.iter_mut().zip(parts) {
            // `parse` alone would let a sign pass.
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            *number = part.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
        }
        Ok(Self(numbers))
    }
}

impl TryFrom<String> for Version {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// What a bundle carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A model directory.
    Model,
    /// The program `pawlatch`.
    Program,
}

/// `bundle.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format: [`FORMAT`].
    pub bundle: u32,
    /// What it carries.
    pub kind: Kind,
    /// A model's name, or `pawlatch`.
    pub name: String,
    /// The model's or the program's version.
    pub version: Version,
    /// Processor the program is for, as Rust names it: `aarch64`, `arm`, `x86_64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// The files, in the order of the archive.
    pub files: Vec<FileLine>,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileLine {
    /// Its name: letters, digits, `.`, `_`, `-`; no directory.
    pub name: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// Its SHA-256, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    /// Reads and checks the text of a `bundle.toml`.
    ///
    /// # Errors
    /// If a key is unknown, missing or impossible, or the format is of the future.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let wrong = |why: String| BundleError::Manifest(why);
        let table: toml::Table = text.parse().map_err(|e| wrong(format!("{e}")))?;
        // Before the keys: a later format may have others.
        match table.get("bundle").and_then(toml::Value::as_integer) {
            Some(1) => {}
            Some(other) => return Err(BundleError::Format(u32::try_from(other).unwrap_or(0))),
            None => return Err(wrong("`bundle` must be the number of its format".to_owned())),
        }
        let manifest: Self = table.try_into().map_err(|e| wrong(format!("{e}")))?;
        manifest.check().map_err(wrong)?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        if !is_plain(&self.name) {
            return Err(format!("`name` is {:?}; expected {PLAIN}", self.name));
        }
        if (self.kind == Kind::Program) != self.arch.is_some() {
            return Err("`arch` belongs to a program, and only there".to_owned());
        }
        if self.files.is_empty() || self.files.len() > MAX_FILES {
            return Err(format!("{} files; expected 1 to {MAX_FILES}", self.files.len()));
        }
        for (n, file) in self.files.iter().enumerate() {
            let doubled = self.files[..n].iter().any(|other| other.name == file.name);
            if !is_plain(&file.name) || doubled || file.name.starts_with(MANIFEST_FILE) {
                return Err(format!("file name {:?}; expected {PLAIN}, each once", file.name));
            }
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if file.sha256.len() != 64 || !file.sha256.bytes().all(hex) {
                return Err(format!("`sha256` of {} is not 64 hexadecimal digits", file.name));
            }
        }
        let total = self.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.bytes));
        match total {
            Some(total) if total <= MAX_BYTES => Ok(()),
            _ => Err(format!("the files take more than {MAX_BYTES} bytes")),
        }
    }

    fn total(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

const PLAIN: &str = "1 to 64 letters, digits, `.`, `_`, `-`, not beginning with `.`";

fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whom to believe.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Keys whose signatures are believed.
    pub keys: Vec<PublicKey>,
    /// SHA-256 of the whole bundle that its maker told the owner; believed without a signature.
    pub pinned: Option<String>,
}

impl Trust {
    /// Believes `keys`, each the base64 line of a minisign public key.
    ///
    /// # Errors
    /// The key that is none.
    pub fn in_keys(keys: &[String]) -> Result<Self, BundleError> {
        let parse = |key: &String| {
            PublicKey::from_base64(key.trim())
                .map_err(|e| BundleError::Signature(format!("the trusted key {key:?}: {e}")))
        };
        Ok(Self { keys: keys.iter().map(parse).collect::<Result<_, _>>()?, pinned: None })
    }

    /// Whether `text` was written by somebody who is believed. A pinned bundle needs no signature,
    /// but a wrong one is still refused where there are keys to judge it.
    fn judge(&self, text: &str, signature: Option<&str>) -> Result<(), BundleError> {
        let Some(signature) = signature else {
            return if self.pinned.is_some() { Ok(()) } else { Err(BundleError::Unsigned) };
        };
        if self.keys.is_empty() {
            return if self.pinned.is_some() { Ok(()) } else { Err(BundleError::NoKey) };
        }
        let refused = |e: minisign_verify::Error| BundleError::Signature(e.to_string());
        let signature = Signature::decode(signature).map_err(refused)?;
        let mut last = None;
        for key in &self.keys {
            match key.verify(text.as_bytes(), &signature, false) {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or(BundleError::NoKey, refused))
    }
}

/// Unpacks a bundle into the empty directory `into`, every file durable when this returns. What is
/// left there after an error is rubbish; remove it.
///
/// # Errors
/// If the bundle is damaged, not believed, holds anything but what its manifest says, or there is
/// no room.
pub fn unpack(archive: impl Read, trust: &Trust, into: &Path) -> Result<Manifest, BundleError> {
    let mut archive = tar::Archive::new(GzDecoder::new(archive));
    // Raw: long names and other extensions come as entries of their own, and are refused.
    let mut entries = archive.entries().map_err(BundleError::Archive)?.raw(true);
    let mut next = || entries.next().transpose().map_err(BundleError::Archive);
    let text = read_text(next()?, MANIFEST_FILE, MAX_MANIFEST_BYTES)?;
    let mut entry = next()?;
    let signed = entry.as_ref().is_some_and(|e| *e.path_bytes() == *SIGNATURE_FILE.as_bytes());
    let signature = if signed {
        let signature = read_text(entry, SIGNATURE_FILE, MAX_SIGNATURE_BYTES)?;
        entry = next()?;
        Some(signature)
    } else {
        None
    };
    trust.judge(&text, signature.as_deref())?;
    let manifest = Manifest::parse(&text)?;
    ensure_space(into, manifest.total())?;
    for (n, line) in manifest.files.iter().enumerate() {
        if n > 0 {
            entry = next()?;
        }
        let mut content = expect_file(entry.take(), &line.name, line.bytes)?;
        write_file(&into.join(&line.name), &mut content, line)?;
    }
    if let Some(more) = next()? {
        let found = String::from_utf8_lossy(&more.path_bytes()).into_owned();
        return Err(BundleError::Order { expected: "its end".to_owned(), found });
    }
    write_durably(&into.join(MANIFEST_FILE), text.as_bytes())?;
    if let Some(signature) = signature {
        write_durably(&into.join(SIGNATURE_FILE), signature.as_bytes())?;
    }
    sync_dir(into)?;
    Ok(manifest)
}

/// Verifies again what was unpacked into `dir`: signature, sizes and hashes. Without a signature
/// beside it, it was believed by its hash when it came, and only the hashes are compared.
///
/// # Errors
/// If anything is not as it was unpacked.
pub fn verify_dir(dir: &Path, trust: &Trust) -> Result<Manifest, BundleError> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(|source| BundleError::File { path, source })
    };
    let text = read(MANIFEST_FILE)?;
    if dir.join(SIGNATURE_FILE).exists() {
        trust.judge(&text, Some(&read(SIGNATURE_FILE)?))?;
    }
    let manifest = Manifest::parse(&text)?;
    for line in &manifest.files {
        let path = dir.join(&line.name);
        let failed = |source| BundleError::File { path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let (bytes, sha256) =
            copy_hashed(&mut file.take(line.bytes + 1), &mut io::sink()).map_err(failed)?;
        if bytes != line.bytes || sha256 != line.sha256 {
            return Err(BundleError::Content { name: line.name.clone() });
        }
    }
    Ok(manifest)
}

/// Writes a bundle of `files` (each beside `dir/bundle.toml`, which they must fit), the same
/// bytes every time.
///
/// # Errors
/// If a file is not as the manifest says, or `out` cannot be written.
pub fn pack(dir: &Path, out: &mut impl Write) -> Result<(), BundleError> {
    let manifest = verify_dir(dir, &Trust { keys: Vec::new(), pinned: Some(String::new()) })?;
    let mut names = vec![MANIFEST_FILE];
    if dir.join(SIGNATURE_FILE).exists() {
        names.push(SIGNATURE_FILE);
    }
    names.extend(manifest.files.iter().map(|file| file.name.as_str()));
    let gz = flate2::write::GzEncoder::new(out, flate2::Compression::best());
    let mut archive = tar::Builder::new(gz);
    for name in names {
        let path = dir.join(name);
        let failed = |source| BundleError::File { path: path.clone(), source };
        let bytes = fs::read(&path).map_err(failed)?;
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, name, bytes.as_slice()).map_err(failed)?;
    }
    archive
        .into_inner()
        .and_then(flate2::write::GzEncoder::finish)
        .map(|_| ())
        .map_err(BundleError::Archive)
}

/// Describes the files `names` in `dir` as a manifest's lines.
///
/// # Errors
/// If one cannot be read.
pub fn describe(dir: &Path, names: &[String]) -> Result<Vec<FileLine>, BundleError> {
    let describe = |name: &String| {
        let path = dir.join(name);
        let failed = |source| BundleError::File { path: path.clone(), source };
        let mut file = File::open(&path).map_err(failed)?;
        let (bytes, sha256) = copy_hashed(&mut file, &mut io::sink()).map_err(failed)?;
        Ok(FileLine { name: name.clone(), bytes, sha256 })
    };
    names.iter().map(describe).collect()
}

/// Copies everything and gives the number of bytes and their SHA-256.
///
/// # Errors
/// If reading or writing fails.
pub fn copy_hashed(from: &mut impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        total += n as u64;
    }
    let hex = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok((total, hex))
}

/// Makes sure that `bytes` fit beside `path` and leave room for what else is written.
///
/// # Errors
/// If they do not.
pub fn ensure_space(path: &Path, bytes: u64) -> Result<(), BundleError> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| BundleError::File { path: path.to_owned(), source: e.into() })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = bytes.saturating_add(RESERVE_BYTES);
    if free >= needed {
        return Ok(());
    }
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    let path = path.to_owned();
    Err(BundleError::NoSpace { path, free_mb: free / 1_000_000, needed_mb: mb(needed) })
}

/// Makes the names in `dir` durable.
///
/// # Errors
/// If the directory cannot be synced.
pub fn sync_dir(dir: &Path) -> Result<(), BundleError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| BundleError::File { path: dir.to_owned(), source })
}

type Entry<'a, R> = tar::Entry<'a, R>;

fn read_text<R: Read>(
    entry: Option<Entry<'_, R>>,
    name: &str,
    limit: u64,
) -> Result<String, BundleError> {
    let entry = expect_regular(entry, name)?;
    if entry.size() > limit {
        let found = format!("{} bytes of it", entry.size());
        return Err(BundleError::Order { expected: format!("{name} of at most {limit}"), found });
    }
    let mut text = String::new();
    entry.take(limit).read_to_string(&mut text).map_err(BundleError::Archive)?;
    Ok(text)
}

fn expect_file<'a, R: Read>(
    entry: Option<Entry<'a, R>>,
    name: &str,
    bytes: u64,
) -> Result<Entry<'a, R>, BundleError> {
    let entry = expect_regular(entry, name)?;
    if entry.size() == bytes {
        return Ok(entry);
    }
    let found = format!("{} bytes of it", entry.size());
    Err(BundleError::Order { expected: format!("{bytes} bytes of {name}"), found })
}

fn expect_regular<'a, R: Read>(
    entry: Option<Entry<'a, R>>,
    name: &str,
) -> Result<Entry<'a, R>, BundleError> {
    let wrong = |found| Err(BundleError::Order { expected: name.to_owned(), found });
    match entry {
        None => wrong("nothing".to_owned()),
        Some(entry) if *entry.path_bytes() != *name.as_bytes() => {
            let found = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            wrong(format!("`{}`", found.escape_default().take(80).collect::<String>()))
        }
        Some(entry) if !entry.header().entry_type().is_file() => {
            wrong("something that is no regular file".to_owned())
        }
        Some(entry) => Ok(entry),
    }
}

fn write_file(path: &Path, content: &mut impl Read, line: &FileLine) -> Result<(), BundleError> {
    let failed = |source| BundleError::File { path: path.to_owned(), source };
    let mut file = File::create_new(path).map_err(failed)?;
    let mut tried = Writing { file: &mut file, error: None };
    match copy_hashed(content, &mut tried) {
        Ok((bytes, sha256)) if bytes == line.bytes && sha256 == line.sha256 => {}
        Ok(_) => return Err(BundleError::Content { name: line.name.clone() }),
        Err(error) => {
            let written = tried.error.take();
            return Err(written.map_or(BundleError::Archive(error), failed));
        }
    }
    file.sync_all().map_err(failed)
}

/// Tells a disk that cannot be written from an archive that cannot be read.
struct Writing<'a> {
    file: &'a mut File,
    error: Option<io::Error>,
}

impl Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|error| {
            let kind = error.kind();
            self.error = Some(error);
            kind.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| BundleError::File { path: path.to_owned(), source })
}
