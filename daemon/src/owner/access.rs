//! Who may do what: the owner's password, sessions, tokens for programs, and how often one may
//! try.
//!
//! - The password is kept as an argon2id hash, tokens as SHA-256 of 256 random bits, in one file
//!   that only this user can read. Sessions live in memory and end with the program.
//! - Every change of anything takes a *ticket*: random, issued to one session, good for one use
//!   within an hour. It is at once the protection against forged, replayed and stale requests.
//! - Whoever fails to log in is locked out for longer each time; all strangers together may try
//!   only so often, since each try costs the machine as much work as it costs them.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pawlatch_core::units::Uptime;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Name of the file in the state directory.
pub const FILE: &str = "access.json";
/// Shortest password, characters.
pub const MIN_PASSWORD: usize = 10;
/// Longest password, bytes.
pub const MAX_PASSWORD: usize = 256;

const SESSION_LASTS: Duration = Duration::from_secs(30 * 24 * 3_600);
const MAX_SESSIONS: usize = 32;
const TICKET_LASTS: Duration = Duration::from_secs(3_600);
const MAX_TICKETS: usize = 64;
const MAX_TOKENS: usize = 32;
/// Failures of one address before it is locked out.
const FREE_FAILURES: u32 = 5;
const FIRST_LOCKOUT: Duration = Duration::from_secs(30);
const LONGEST_LOCKOUT: Duration = Duration::from_secs(3_600);
/// Addresses whose failures are remembered.
const MAX_ADDRESSES: usize = 1_024;
/// Tries that strangers have together, and how fast they come back.
const STRANGERS_TRIES: f64 = 10.0;
const STRANGERS_TRIES_PER_S: f64 = 1.0 / 3.0;
/// How old an order of a program may be, and how far its clock may be ahead.
pub const ORDER_LASTS: Duration = Duration::from_secs(30);
/// Orders remembered, so that none is obeyed twice.
const MAX_ORDERS: usize = 1_024;

/// Why passwords and tokens cannot be kept.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be understood.
    #[error(
        "{} is damaged; remove it and set the password anew with `pawlatch password`", path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The password is too short or too long.
    #[error("a password has at least {MIN_PASSWORD} characters and at most {MAX_PASSWORD} bytes")]
    Password,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// There is a token of this name, or there are too many, or the name is no name.
    #[error("a token needs a name of its own of 1 to 40 characters; there may be {MAX_TOKENS}")]
    Token,
}

/// What somebody may do; each may do what the one before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Look.
    Read,
    /// Lock and unlock.
    Open,
    /// Change everything.
    Admin,
}

impl Scope {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Open => "open",
            Self::Admin => "admin",
        }
    }

    /// The scope called `name`.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Read, Self::Open, Self::Admin].into_iter().find(|scope| scope.name() == name)
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// PHC string.
    password: Option<String>,
    #[serde(default)]
    tokens: Vec<Token>,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// What the owner calls it.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// SHA-256 of the secret, hexadecimal.
    sha256: String,
}

#[derive(Debug)]
struct Session {
    sha256: String,
    ends: Uptime,
    tickets: VecDeque<(String, Uptime)>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Failures {
    count: u32,
    locked_until: Uptime,
}

/// What becomes of an attempt to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// May be made.
    Allowed,
    /// Not before this time has passed.
    LockedOut(Duration),
}

/// What becomes of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TicketIs {
    /// Good, and now used.
    Good,
    /// Used, made up, of another session, or pushed out by newer ones.
    Unknown,
    /// Older than an hour.
    Expired,
}

/// Passwords, sessions, tokens and tries.
#[derive(Debug)]
pub struct Access {
    path: PathBuf,
    kept: Kept,
    read_at: Option<SystemTime>,
    sessions: VecDeque<Session>,
    failures: HashMap<IpAddr, Failures>,
    /// Addresses that have logged in before.
    known: VecDeque<IpAddr>,
    strangers_tries: f64,
    refilled: Uptime,
    orders: VecDeque<(String, Uptime)>,
}

impl Access {
    /// What is kept in `dir`; nothing if there is no file yet.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn open(dir: &Path) -> Result<Self, AccessError> {
        let mut access = Self {
            path: dir.join(FILE),
            kept: Kept::default(),
            read_at: None,
            sessions: VecDeque::new(),
            failures: HashMap::new(),
            known: VecDeque::new(),
            strangers_tries: STRANGERS_TRIES,
            refilled: Uptime::ZERO,
            orders: VecDeque::new(),
        };
        access.refresh()?;
        Ok(access)
    }

    /// Reads the file again if somebody else, such as `pawlatch password`, has changed it. A
    /// changed password ends all sessions.
    ///
    /// # Errors
    /// If the file cannot be read or understood; what was known before then still holds.
    pub fn refresh(&mut self) -> Result<(), AccessError> {
        let failed = |source| AccessError::File { action: "read", path: self.path.clone(), source };
        let changed = match fs::metadata(&self.path).and_then(|meta| meta.modified()) {
            Ok(changed) => changed,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed(source)),
        };
        if self.read_at == Some(changed) {
            return Ok(());
        }
        let text = fs::read_to_string(&self.path).map_err(failed)?;
        let kept: Kept = serde_json::from_str(&text)
            .map_err(|source| AccessError::Damaged { path: self.path.clone(), source })?;
        if kept.password != self.kept.password {
            self.sessions.clear();
        }
        self.kept = kept;
        self.read_at = Some(changed);
        Ok(())
    }

    /// The hash of the password, to be held against one with [`matches`]; `None` before the first
    /// run is over.
    pub fn password_hash(&self) -> Option<String> {
        self.kept.password.clone()
    }

    /// Keeps the password of which `hash` is the [`hashed`] form. All sessions end.
    ///
    /// # Errors
    /// If it cannot be written; the old one then still holds.
    pub fn set_password(&mut self, hash: String) -> Result<(), AccessError> {
        let mut kept = self.kept.clone();
        kept.password = Some(hash);
        self.keep(kept)?;
        self.sessions.clear();
        Ok(())
    }

    fn keep(&mut self, kept: Kept) -> Result<(), AccessError> {
        // Texts and lists of texts: JSON can always write them.
        let text = serde_json::to_string_pretty(&kept).unwrap_or_default();
        let write = || -> io::Result<SystemTime> {
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            let part = self.path.with_extension("part");
            let _ = fs::remove_file(&part);
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, &self.path)?;
            fs::metadata(&self.path)?.modified()
        };
        let written = write();
        let path = self.path.clone();
        let changed =
            written.map_err(|source| AccessError::File { action: "write", path, source })?;
        self.kept = kept;
        self.read_at = Some(changed);
        Ok(())
    }

    /// Whether somebody at `address` may try to log in at `now`. A try that is allowed must be
    /// followed by [`Access::failed`] or [`Access::begin_session`].
    pub fn attempt(&mut self, address: IpAddr, now: Uptime) -> Attempt {
        let failures = self.failures.get(&address).copied().unwrap_or_default();
        if now < failures.locked_until {
            return Attempt::LockedOut(failures.locked_until.since(now));
        }
        let back = now.since(self.refilled).as_secs_f64() * STRANGERS_TRIES_PER_S;
        self.strangers_tries = (self.strangers_tries + back).min(STRANGERS_TRIES);
        self.refilled = now;
        if self.known.contains(&address) {
            return Attempt::Allowed;
        }
        if self.strangers_tries < 1.0 {
            return Attempt::LockedOut(Duration::from_secs_f64(1.0 / STRANGERS_TRIES_PER_S));
        }
        self.strangers_tries -= 1.0;
        Attempt::Allowed
    }

    /// Somebody at `address` gave a wrong password or token. Gives for how long they are locked
    /// out now, if that has just begun.
    pub fn failed(&mut self, address: IpAddr, now: Uptime) -> Option<Duration> {
        if self.failures.len() >= MAX_ADDRESSES && !self.failures.contains_key(&address) {
            // Those whose time is over first; if all are locked out, the one who is free soonest.
            self.failures.retain(|_, f| f.locked_until > now);
            if self.failures.len() >= MAX_ADDRESSES {
                let soonest = self.failures.iter().min_by_key(|(_, f)| f.locked_until);
                if let Some(address) = soonest.map(|(address, _)| *address) {
                    self.failures.remove(&address);
                }
            }
        }
        let failures = self.failures.entry(address).or_default();
        failures.count = failures.count.saturating_add(1);
        let over = failures.count.checked_sub(FREE_FAILURES)?;
        let lockout = FIRST_LOCKOUT.saturating_mul(1 << over.min(16)).min(LONGEST_LOCKOUT);
        failures.locked_until = now + lockout;
        Some(lockout)
    }

    /// Begins a session of somebody at `address` who gave the right password; gives the secret
    /// for the cookie. The oldest session gives way if there are too many.
    ///
    /// # Errors
    /// If there are no random numbers.
    pub fn begin_session(&mut self, address: IpAddr, now: Uptime) -> Result<String, AccessError> {
        let secret = random()?;
        self.failures.remove(&address);
        self.known.retain(|known| *known != address);
        self.known.push_back(address);
        if self.known.len() > MAX_SESSIONS {
            self.known.pop_front();
        }
        self.sessions.retain(|session| now < session.ends);
        if self.sessions.len() >= MAX_SESSIONS {
            self.sessions.pop_front();
        }
        let (sha256, ends) = (digest(&secret), now + SESSION_LASTS);
        self.sessions.push_back(Session { sha256, ends, tickets: VecDeque::new() });
        Ok(secret)
    }

    fn session(&mut self, secret: &str, now: Uptime) -> Option<&mut Session> {
        let sha256 = digest(secret);
        self.sessions.iter_mut().find(|s| s.sha256 == sha256 && now < s.ends)
    }

    /// Whether `secret` is that of a session that goes on.
    pub fn is_session(&mut self, secret: &str, now: Uptime) -> bool {
        self.session(secret, now).is_some()
    }

    /// Ends the session.
    pub fn end_session(&mut self, secret: &str) {
        let sha256 = digest(secret);
        self.sessions.retain(|session| session.sha256 != sha256);
    }

    /// A new ticket for the session; `None` if there is no such session.
    ///
    /// # Errors
    /// If there are no random numbers.
    pub fn ticket(&mut self, session: &str, now: Uptime) -> Result<Option<String>, AccessError> {
        let Some(session) = self.session(session, now) else { return Ok(None) };
        let ticket = random()?;
        if session.tickets.len() >= MAX_TICKETS {
            session.tickets.pop_front();
        }
        session.tickets.push_back((ticket.clone(), now));
        Ok(Some(ticket))
    }

    /// Uses a ticket up.
    pub fn use_ticket(&mut self, session: &str, ticket: &str, now: Uptime) -> TicketIs {
        let Some(session) = self.session(session, now) else { return TicketIs::Unknown };
        let Some(n) = session.tickets.iter().position(|(known, _)| known == ticket) else {
            return TicketIs::Unknown;
        };
        match session.tickets.remove(n) {
            Some((_, issued)) if now.since(issued) <= TICKET_LASTS => TicketIs::Good,
            _ => TicketIs::Expired,
        }
    }

    /// The tokens.
    pub fn tokens(&self) -> &[Token] {
        &self.kept.tokens
    }

    /// Makes a token; gives its secret, which is not kept.
    ///
    /// # Errors
    /// If the name is taken or no name, there are too many, or it cannot be written.
    pub fn add_token(&mut self, name: &str, scope: Scope) -> Result<String, AccessError> {
        let name = name.trim();
        let sound = (1..=40).contains(&name.chars().count()) && !name.contains(char::is_control);
        let taken = self.kept.tokens.iter().any(|token| token.name == name);
        if !sound || taken || self.kept.tokens.len() >= MAX_TOKENS {
            return Err(AccessError::Token);
        }
        let secret = random()?;
        let mut kept = self.kept.clone();
        let token = Token { name: name.to_owned(), scope, sha256: digest(&secret) };
        kept.tokens.push(token);
        self.keep(kept)?;
        Ok(secret)
    }

    /// Revokes a token; whether there was one.
    ///
    /// # Errors
    /// If that cannot be written; the token then still holds.
    pub fn revoke_token(&mut self, name: &str) -> Result<bool, AccessError> {
        let mut kept = self.kept.clone();
        kept.tokens.retain(|token| token.name != name);
        let found = kept.tokens.len() < self.kept.tokens.len();
        if found {
            self.keep(kept)?;
        }
        Ok(found)
    }

    /// The token with this secret.
    pub fn token(&self, secret: &str) -> Option<&Token> {
        let sha256 = digest(secret);
        self.kept.tokens.iter().find(|token| token.sha256 == sha256)
    }

    /// Takes the order `id` of a program for obeyed; false if it was before. Ids are remembered
    /// for as long as an order is not too old anyway.
    pub fn first_time(&mut self, id: &str, now: Uptime) -> bool {
        self.orders.retain(|(_, at)| now.since(*at) <= 3 * ORDER_LASTS);
        if self.orders.len() >= MAX_ORDERS || self.orders.iter().any(|(known, _)| known == id) {
            return false;
        }
        self.orders.push_back((id.to_owned(), now));
        true
    }
}

/// Whether `text` can be a password.
fn is_password(text: &str) -> bool {
    text.chars().count() >= MIN_PASSWORD && text.len() <= MAX_PASSWORD
}

/// The argon2id hash of `password` (19 MiB, two passes, one lane, as OWASP advises), as a PHC
/// string. Takes some 20 ms of one core.
///
/// # Errors
/// If the password is too short or too long, or there are no random numbers.
pub fn hashed(password: &str) -> Result<String, AccessError> {
    if !is_password(password) {
        return Err(AccessError::Password);
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|_| AccessError::Random)?;
    let hash = Argon2::default()
        .hash_password_with_salt(password.as_bytes(), &salt)
        .map_err(|_| AccessError::Password)?;
    Ok(hash.to_string())
}

/// Whether `password` is the one of which `hash` is the [`hashed`] form.
pub fn matches(password: &str, hash: &str) -> bool {
    let verifier: &dyn PasswordVerifier<str> = &Argon2::default();
    password.len() <= MAX_PASSWORD && verifier.verify_password(password.as_bytes(), hash).is_ok()
}

/// 256 random bits, in letters that need no escaping anywhere.
fn random() -> Result<String, AccessError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| AccessError::Random)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn digest(secret: &str) -> String {
    Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 2));

    fn at(seconds: u64) -> Uptime {
        Uptime::from_millis(1_000 * seconds)
    }

    fn stranger(n: u32) -> IpAddr {
        IpAddr::V4(n.to_be_bytes().into())
    }

    #[test]
    fn a_password_is_kept_as_a_hash_that_only_it_matches() {
        let dir = tempfile::tempdir().unwrap();
        let mut access = Access::open(dir.path()).unwrap();
        assert_eq!(access.password_hash(), None);
        assert!(matches!(hashed("short"), Err(AccessError::Password)));
        access.set_password(hashed("correct horse").unwrap()).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.contains("$argon2id$") && !text.contains("correct horse"), "{text}");
        let mode =
            std::os::unix::fs::MetadataExt::mode(&fs::metadata(dir.path().join(FILE)).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        let hash = Access::open(dir.path()).unwrap().password_hash().unwrap();
        assert!(matches("correct horse", &hash));
        assert!(!matches("correct horsf", &hash) && !matches("", &hash));
        assert!(!matches("correct horse", "damaged"));
    }

    #[test]
    fn a_password_set_elsewhere_is_noticed_and_ends_sessions() {
        let dir = tempfile::tempdir().unwrap();
        let mut access = Access::open(dir.path()).unwrap();
        let session = access.begin_session(HOME, at(0)).unwrap();
        Access::open(dir.path()).unwrap().set_password(hashed("another one").unwrap()).unwrap();
        access.refresh().unwrap();
        assert!(access.password_hash().is_some());
        assert!(!access.is_session(&session, at(1)));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_never_an_open_door() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(matches!(Access::open(dir.path()), Err(AccessError::Damaged { .. })));
    }

    #[test]
    fn a_ticket_is_good_once_for_one_session_within_the_hour() {
        let dir = tempfile::tempdir().unwrap();
        let mut access = Access::open(dir.path()).unwrap();
        let mine = access.begin_session(HOME, at(0)).unwrap();
        let other = access.begin_session(HOME, at(0)).unwrap();
        let ticket = access.ticket(&mine, at(0)).unwrap().unwrap();
        assert_eq!(access.use_ticket(&other, &ticket, at(1)), TicketIs::Unknown);
        assert_eq!(access.use_ticket(&mine, &ticket, at(1)), TicketIs::Good);
        assert_eq!(access.use_ticket(&mine, &ticket, at(1)), TicketIs::Unknown);
        let old = access.ticket(&mine, at(0)).unwrap().unwrap();
        assert_eq!(access.use_ticket(&mine, &old, at(3_601)), TicketIs::Expired);
        assert_eq!(access.use_ticket(&mine, "", at(1)), TicketIs::Unknown);
        let month = SESSION_LASTS.as_secs();
        assert!(access.is_session(&mine, at(month - 1)) && !access.is_session(&mine, at(month)));
        access.end_session(&other);
        assert!(!access.is_session(&other, at(1)));
    }

    #[test]
    fn whoever_fails_is_locked_out_for_longer_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut access = Access::open(dir.path()).unwrap();
        let eve = stranger(7);
        for _ in 1..FREE_FAILURES {
            assert_eq!(access.attempt(eve, at(0)), Attempt::Allowed);
            assert_eq!(access.failed(eve, at(0)), None);
        }
        assert_eq!(access.failed(eve, at(0)), Some(FIRST_LOCKOUT));
        assert!(matches!(access.attempt(eve, at(29)), Attempt::LockedOut(_)));
        assert_eq!(access.attempt(eve, at(30)), Attempt::Allowed);
        assert_eq!(access.failed(eve, at(30)), Some(2 * FIRST_LOCKOUT));
        let mut longest = Duration::ZERO;
        for _ in 0..40 {
            longest = longest.max(access.failed(eve, at(60)).unwrap());
        }
        assert_eq!(longest, LONGEST_LOCKOUT);
    }

    #[test]
    fn ten_thousand_strangers_cost_few_hashes_and_do_not_lock_the_owner_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut access = Access::open(dir.path()).unwrap();
        access.begin_session(HOME, at(0)).unwrap();
        let mut hashed = 0;
        for n in 0..10_000 {
            let eve = stranger(n);
            if access.attempt(eve, at(10)) == Attempt::Allowed {
                hashed += 1;
                access.failed(eve, at(10));
            }
        }
        assert!(hashed <= 10, "{hashed}");
        assert_eq!(access.attempt(HOME, at(10)), Attempt::Allowed);
        for n in 0..5_000 {
            access.failed(stranger(n), at(10));
        }
        assert!(access.failures.len() <= MAX_ADDRESSES);
    }

    #[test]
    fn tokens_are_scoped_hashed_and_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let mut access = Access::open(dir.path()).unwrap();
        let secret = access.add_token("kitchen", Scope::Open).unwrap();
        assert!(matches!(access.add_token("kitchen", Scope::Read), Err(AccessError::Token)));
        assert!(matches!(access.add_token(" ", Scope::Read), Err(AccessError::Token)));
        assert!(!fs::read_to_string(dir.path().join(FILE)).unwrap().contains(&secret));
        let token = access.token(&secret).unwrap();
        assert!(token.scope >= Scope::Read && token.scope < Scope::Admin);
        assert!(access.token("").is_none() && access.token(&token.sha256).is_none());
        assert!(
            access.revoke_token("kitchen").unwrap() && !access.revoke_token("kitchen").unwrap()
        );
        assert!(Access::open(dir.path()).unwrap().token(&secret).is_none());
    }

    #[test]
    fn an_order_is_obeyed_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut access = Access::open(dir.path()).unwrap();
        assert!(access.first_time("a", at(0)) && !access.first_time("a", at(60)));
        assert!(access.first_time("b", at(60)) && access.first_time("a", at(200)));
    }
}
