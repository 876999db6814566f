//! The owner's page and its interface for programs, over real sockets beside a door that runs.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::{Timestamp, ToSpan as _};
use pawlatch::appliance::{self, Live, LookError, run};
use pawlatch::camera::{Scene, SimulatedSource};
use pawlatch::clock::Clock;
use pawlatch::config::Config;
use pawlatch::journal::{Archive, Entry, Journal, JournalSettings, Recorder as _};
use pawlatch::latch::{self, LatchThread};
use pawlatch::models::{Entry as Model, ModelsDir};
use pawlatch::owner::access::{Access, Scope, hashed};
use pawlatch::owner::{House, Link, Owner};
use pawlatch::panel::Panel;
use pawlatch::shadow::{Counts, Shadow};
use pawlatch_core::door::State;
use pawlatch_core::event::{Event, What};
use pawlatch_core::frame::Frame;
use pawlatch_core::sight::{Class, Sightings};
use pawlatch_core::units::{Rect, Uptime};
use support::{frame_with, sure};

const PASSWORD: &str = "correct horse battery";

/// Whoever measures is alone in this process.
static ALONE: RwLock<()> = RwLock::new(());

/// A door that runs, with its page.
struct Door {
    dir: tempfile::TempDir,
    port: u16,
    house: Arc<House>,
    stop: Arc<AtomicBool>,
    /// The newest state, and how long ago each cycle came after the one before, microseconds.
    state: Arc<Mutex<Option<State>>>,
    cycles: Arc<Mutex<Vec<u64>>>,
    thread: Option<JoinHandle<()>>,
    beside_others: Option<RwLockReadGuard<'static, ()>>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Door {
    fn start(set: &[(&str, &str)], password: bool) -> Self {
        let beside_others = ALONE.read().unwrap_or_else(PoisonError::into_inner);
        let mut door = Self::start_alone(set, password);
        door.beside_others = Some(beside_others);
        door
    }

    fn start_alone(set: &[(&str, &str)], password: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let journal = dir.path().join("journal").display().to_string();
        let listen = format!("127.0.0.1:{port}");
        let mut keys = vec![
            ("PAWLATCH__JOURNAL__DIR", journal.as_str()),
            ("PAWLATCH__PAGE__LISTEN", listen.as_str()),
        ];
        let everywhere = format!("0.0.0.0:{port}");
        for (key, value) in set {
            let value = if *value == "EVERYWHERE" { everywhere.as_str() } else { value };
            keys.retain(|(known, _)| known != key);
            keys.push((key, value));
        }
        let config = Config::load_with(None, keys).unwrap();
        if password {
            let mut access = Access::open(&config.journal.dir).unwrap();
            access.set_password(hashed(PASSWORD).unwrap()).unwrap();
        }
        let clock = Clock::start();
        let owner = Owner::start(config.owner.clone(), config.journal.dir.clone(), None, clock);
        let owner = owner.unwrap();
        let house = Arc::clone(owner.house());
        let (stop, state, cycles) = (Arc::default(), Arc::default(), Arc::default());
        let thread = run_door(owner, config, clock, &stop, &state, &cycles);
        let door = Self {
            dir,
            port,
            house,
            stop,
            state,
            cycles,
            thread: Some(thread),
            beside_others: None,
        };
        door.wait(|state| matches!(state, State::Idle { .. }));
        door
    }

    fn wait(&self, wanted: impl Fn(&State) -> bool) {
        let began = Instant::now();
        while !self.state.lock().unwrap().as_ref().is_some_and(&wanted) {
            let state = *self.state.lock().unwrap();
            assert!(began.elapsed() < Duration::from_secs(20), "still {state:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn at(&self, ip: [u8; 4]) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), self.port)
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        ask(self.at([127, 0, 0, 1]), method, path, headers, body).unwrap()
    }

    fn log_in(&self) -> String {
        let answer = self.form("/login", &[], &format!("password={}", PASSWORD.replace(' ', "+")));
        assert_eq!(answer.status, 303, "{}", answer.body);
        let cookie = answer.header("set-cookie").unwrap();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        cookie.split(';').next().unwrap().to_owned()
    }

    fn form(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut headers = headers.to_vec();
        headers.push(("content-type", "application/x-www-form-urlencoded"));
        self.ask("POST", path, &headers, body)
    }

    fn ticket(&self, cookie: &str) -> String {
        let ask = || self.ask("POST", "/ticket", &[("cookie", cookie)], "");
        let mut answer = ask();
        let began = Instant::now();
        // On a quick machine a test asks more often than a person may.
        while answer.status == 429 && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(100));
            answer = ask();
        }
        assert_eq!(answer.status, 200, "{}", answer.body);
        let json: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        json["ticket"].as_str().unwrap().to_owned()
    }

    fn token(&self, name: &str, scope: Scope) -> String {
        format!("Bearer {}", self.house.access().add_token(name, scope).unwrap())
    }

    fn order(&self, token: &str, order: &str, id: &str, at: Timestamp) -> Answer {
        let body = serde_json::json!({ "id": id, "at": at }).to_string();
        let headers = [("authorization", token), ("content-type", "application/json")];
        self.ask("POST", &format!("/api/orders/{order}"), &headers, &body)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run_door(
    mut owner: Owner,
    config: Config,
    clock: Clock,
    stop: &Arc<AtomicBool>,
    state: &Arc<Mutex<Option<State>>>,
    cycles: &Arc<Mutex<Vec<u64>>>,
) -> JoinHandle<()> {
    let (stop, state, cycles) = (Arc::clone(stop), Arc::clone(state), Arc::clone(cycles));
    std::thread::spawn(move || {
        let latch = latch::open(&config.latch).unwrap();
        let latch = LatchThread::spawn(latch, config.latch.lease.clone(), clock).unwrap();
        let journal = Journal::start(config.journal.clone(), clock).unwrap();
        let (asker, requests) = appliance::requests();
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models");
        owner.link(Link {
            asker,
            scribe: journal.scribe(),
            config: Arc::new(config.clone()),
            models: ModelsDir::open(&models, "the test").unwrap(),
        });
        let began = Instant::now();
        // A dog for two seconds of every eight.
        let look = move |frame: &Frame| -> Result<Sightings, LookError> {
            let there = began.elapsed().as_secs() % 8 >= 6;
            let seen = if there { vec![sure(Class::Dog, false)] } else { Vec::new() };
            Ok(frame_with(frame.captured_at(), seen))
        };
        let live = Live {
            latch,
            keeper: appliance::keeper(&config, false, clock.now()),
            source: Box::new(SimulatedSource::new(Scene::yard(), 20.0)),
            look,
            journal,
            intent_path: None,
            requests,
            panel: Panel::none(),
            time_zone: config.time_zone,
            clock,
        };
        let mut last = Instant::now();
        run(live, &stop, |moment| {
            owner.tap(moment);
            *state.lock().unwrap() = Some(moment.decision.state);
            cycles.lock().unwrap().push(last.elapsed().as_micros() as u64);
            last = Instant::now();
        })
        .unwrap();
    })
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

fn ask(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Answer> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        text.push_str(&format!("host: {to}\r\n"));
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// Everything that changes something from the page.
const CHANGES: [&str; 20] = [
    "/act/open_once",
    "/act/hold_open",
    "/act/lock",
    "/act/hold_locked",
    "/act/release",
    "/visits/1/label",
    "/visits/1/enrol",
    "/animals/take",
    "/animals/again",
    "/animals/remove",
    "/animals/paint",
    "/rules",
    "/camera",
    "/models/use",
    "/models/back",
    "/models/shadow",
    "/settings/password",
    "/settings/tokens",
    "/settings/tokens/revoke",
    "/settings/wipe",
];

#[test]
fn nothing_is_changed_without_a_session_and_a_fresh_ticket_from_here() {
    let door = Door::start(&[], true);
    let cookie = door.log_in();
    let session = [("cookie", cookie.as_str())];
    for path in CHANGES {
        let body = "word=erase&password=x&name=x&scope=admin";
        assert_eq!(door.form(path, &[], body).status, 401, "{path} without a session");
        let answer = door.form(path, &session, body);
        let refused = answer.status == 403 || (path == "/rules" && answer.status == 422);
        assert!(refused, "{path} without a ticket: {}", answer.status);
        let made_up = format!("{body}&ticket=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        let answer = door.form(path, &session, &made_up);
        assert!([403, 422].contains(&answer.status), "{path} with a made-up ticket");
        let good = format!("{body}&ticket={}", door.ticket(&cookie));
        for foreign in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("host", "evil.example"),
        ] {
            let headers = [session[0], foreign];
            assert_eq!(door.form(path, &headers, &good).status, 403, "{path} from {foreign:?}");
        }
        let read = door.ask("GET", path, &session, "").status;
        let is_page = ["/rules", "/camera"].contains(&path);
        assert_eq!(read, if is_page { 200 } else { 405 }, "{path} by GET");
        // One address may ask thirty times a second.
        std::thread::sleep(std::time::Duration::from_millis(350));
    }
    let tokens = door.house.access().tokens().len();
    assert_eq!(tokens, 0, "nothing was done");
    // A program's token does not open the page.
    let admin = door.token("admin", Scope::Admin);
    let answer = door.form("/act/open_once", &[("authorization", &admin)], "");
    assert_eq!(answer.status, 401);
}

#[test]
fn a_ticket_is_good_once() {
    let door = Door::start(&[], true);
    let cookie = door.log_in();
    let body = format!("ticket={}", door.ticket(&cookie));
    let session = [("cookie", cookie.as_str())];
    assert_eq!(door.form("/act/hold_locked", &session, &body).status, 303);
    door.wait(|state| matches!(state, State::HeldLocked { .. }));
    assert_eq!(door.form("/act/release", &session, &body).status, 403, "replayed");
    std::thread::sleep(Duration::from_millis(300));
    door.wait(|state| matches!(state, State::HeldLocked { .. }));
    // After logging out the cookie is worth nothing.
    let body = format!("ticket={}", door.ticket(&cookie));
    assert_eq!(door.form("/logout", &session, &body).status, 303);
    assert_eq!(door.ask("GET", "/", &session, "").header("location"), Some("/login"));
}

#[test]
fn a_program_does_what_its_scope_says_once_and_soon() {
    let door = Door::start(&[], true);
    let (read, open) = (door.token("read", Scope::Read), door.token("open", Scope::Open));
    let now = Timestamp::now;
    assert_eq!(door.order(&read, "hold_locked", "a", now()).status, 403);
    assert_eq!(door.order("Bearer nonsense", "hold_locked", "a", now()).status, 401);
    assert_eq!(door.order(&open, "explode", "a", now()).status, 404);
    assert_eq!(door.order(&open, "hold_locked", "a", now() - 31.seconds()).status, 403, "stale");
    assert_eq!(door.order(&open, "hold_locked", "a", now() + 31.seconds()).status, 403);
    assert_eq!(door.order(&open, "hold_locked", "", now()).status, 422);
    let at = now();
    assert_eq!(door.order(&open, "hold_locked", "a", at).status, 200);
    door.wait(|state| matches!(state, State::HeldLocked { .. }));
    assert_eq!(door.order(&open, "release", "b", now()).status, 200);
    door.wait(|state| matches!(state, State::Idle { .. } | State::Watching { .. }));
    assert_eq!(door.order(&open, "hold_locked", "a", at).status, 403, "replayed");
    // What may be read, and what not without a token.
    for path in ["/api/status", "/api/visits", "/metrics"] {
        assert_eq!(door.ask("GET", path, &[("authorization", &read)], "").status, 200, "{path}");
        assert_eq!(door.ask("GET", path, &[], "").status, 401, "{path}");
    }
    // A session cannot order here, so no foreign page can have its browser do it.
    let cookie = door.log_in();
    let answer = door.ask("POST", "/api/orders/open_once", &[("cookie", &cookie)], "{}");
    assert_eq!(answer.status, 403);
    // All of it is in the trail.
    std::thread::sleep(Duration::from_millis(500));
    let archive = Archive::open(&door.dir.path().join("journal")).unwrap();
    let trail = archive.audit(99).unwrap();
    assert!(
        trail
            .iter()
            .any(|t| t.audit.who.starts_with("token open") && t.audit.what == "hold_locked")
    );
    let secret = open.trim_start_matches("Bearer ");
    assert!(!format!("{trail:?}").contains(secret));
}

#[test]
fn until_the_password_is_set_only_this_machine_is_listened_to() {
    let door = Door::start(&[("PAWLATCH__PAGE__LISTEN", "EVERYWHERE")], false);
    let elsewhere = door.at([127, 0, 0, 2]);
    assert_eq!(door.ask("GET", "/", &[], "").header("location"), Some("/setup"));
    assert!(ask(elsewhere, "GET", "/", &[], "").is_err(), "reached from elsewhere");
    let answer =
        door.form("/setup", &[("host", "evil.example")], "password=0123456789&again=0123456789");
    assert_eq!(answer.status, 403, "a foreign name");
    let answer = door.form("/setup", &[], "password=short&again=short");
    assert!(answer.body.contains("at least"), "{}", answer.body);
    let answer = door.form("/setup", &[], "password=0123456789&again=0123456789");
    assert_eq!(answer.status, 303);
    assert_eq!(
        door.form("/setup", &[], "password=9876543210&again=9876543210").status,
        403,
        "twice"
    );
    let began = Instant::now();
    while ask(elsewhere, "GET", "/login", &[], "").is_err() {
        assert!(began.elapsed() < Duration::from_secs(10), "never listened to everybody");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn whoever_guesses_is_locked_out() {
    let door = Door::start(&[], true);
    let statuses: Vec<u16> =
        (0..12).map(|n| door.form("/login", &[], &format!("password=guess{n}")).status).collect();
    assert!(statuses[..4].iter().all(|s| *s == 403), "{statuses:?}");
    assert!(statuses[5..].iter().all(|s| *s == 429), "{statuses:?}");
    let answer = door.form("/login", &[], &format!("password={}", PASSWORD.replace(' ', "+")));
    assert_eq!(answer.status, 429, "locked out even with the right one");
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() > 20);
}

#[test]
fn what_is_sent_is_nonsense_and_the_page_lives() {
    let door = Door::start(&[], true);
    let cookie = door.log_in();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let paths = [
        "/",
        "/visits",
        "/visits/1",
        "/visits/-1",
        "/visits/99999999999999999999",
        "/visits/1/pictures/x",
        "/visits/1/heat",
        "/live.jpg?large=",
        "/visits?before=x",
        "/visits?verdict=%ff%00",
        "/api/visits?limit=-1",
        "/api/visits?limit=1e9",
        "/rules",
        "/camera",
        "/models",
        "/animals",
        "/animals/aid?name=%ff",
        "/animals/pictures/..%2f..%2fx",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/visits/1/pictures/..%2f..%2fx",
        "/events/x",
    ];
    for n in 0..200 {
        let noise: String =
            (0..random() % 60).map(|_| char::from((random() % 94 + 33) as u8)).collect();
        let path = paths[(random() % paths.len() as u64) as usize];
        let body = match n % 4 {
            0 => noise.clone(),
            1 => format!("name-0={noise}&who-0={noise}&from-0=%zz&days-0={noise}"),
            2 => format!("approach={noise}&masks={noise}&ticket={}", door.ticket(&cookie)),
            _ => format!("{{\"id\":{noise}"),
        };
        let method = if n % 3 == 0 { "GET" } else { "POST" };
        let kind =
            if n % 2 == 0 { "application/x-www-form-urlencoded" } else { "application/json" };
        let headers = [("cookie", cookie.as_str()), ("content-type", kind)];
        let answer = door.ask(method, path, &headers, &body);
        assert!(answer.status != 500, "{method} {path} {body}: {}", answer.head);
        if answer.status == 429 {
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    // Not HTTP at all.
    for bytes in
        [&b"\x16\x03\x01\x02\x00"[..], b"GET / HTTP/9\r\n\r\n", b"\0\0\0\0\r\n\r\n", b"GET"]
    {
        let mut stream = TcpStream::connect(door.at([127, 0, 0, 1])).unwrap();
        stream.write_all(bytes).unwrap();
    }
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(door.ask("GET", "/login", &[], "").status, 200);
}

#[test]
fn a_bolt_that_does_not_do_as_told_is_shown_as_it_is() {
    let door = Door::start(&[("PAWLATCH__LATCH__JAM_EVERY", "1")], true);
    let cookie = door.log_in();
    let body = format!("ticket={}", door.ticket(&cookie));
    let session = [("cookie", cookie.as_str())];
    door.form("/act/hold_open", &session, &body);
    let began = Instant::now();
    loop {
        let page = door.ask("GET", "/", &session, "").body;
        assert!(!page.contains("headline\" role=\"status\">Unlocked"), "told, not observed");
        if page.contains("The latch is jammed") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{page}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_animal_is_marked_as_its_owner_likes() {
    let door = Door::start(&[], true);
    let cookie = door.log_in();
    let session = [("cookie", cookie.as_str())];
    let dir = door.dir.path().join("journal/animals");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("animals.json"), r#"[{"name": "Rex", "pictures": []}]"#).unwrap();
    let paint = |colour: &str| {
        let body = format!("name=Rex&colour={colour}&ticket={}", door.ticket(&cookie));
        door.form("/animals/paint", &session, &body).status
    };
    assert_eq!(paint("green"), 303);
    assert_eq!(paint("invisible"), 404);
    let page = door.ask("GET", "/animals", &session, "").body;
    assert!(page.contains("class=\"coat green\"") && page.contains("Rex"), "{page}");
}

#[test]
fn a_candidate_that_looks_on_is_compared_and_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models");
    let models = ModelsDir::open(&root, "the test").unwrap();
    let (in_use, candidate) =
        (models.in_use().unwrap(), models.entry("efficientnet_lite0").unwrap());
    let settings = JournalSettings { dir: dir.path().to_owned(), budget_bytes: 10_000_000 };
    let mut journal = Journal::start(settings, Clock::start()).unwrap();
    journal.flush(Duration::from_secs(20));
    journal.record(Entry::Event(Event { at: Uptime::ZERO, what: What::ApproachBegan }));
    let start = |candidate: Model| {
        let (dir, scribe) = (dir.path().to_owned(), journal.scribe());
        Shadow::start(candidate, in_use.clone(), Rect::WHOLE, dir, scribe).unwrap()
    };
    // The models in use are said to see a dog in a picture of nothing; the candidate sees none.
    let mut ms = 0;
    let mut shown = |shadow: &mut Shadow| {
        ms += 500;
        let at = Uptime::from_millis(ms);
        let frame = Frame::from_rgb(vec![90; 3 * 64 * 64], 64, 64, at).unwrap();
        shadow.show(&frame, &[sure(Class::Dog, false)]);
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut broken = start(Model { dir: dir.path().join("nowhere"), ..candidate.clone() });
    (0..10).for_each(|_| shown(&mut broken));
    let mut shadow = start(candidate.clone());
    let counted = || Counts::read(dir.path()).filter(|counts| counts.less >= 2);
    let began = Instant::now();
    while counted().is_none() {
        assert!(began.elapsed() < Duration::from_secs(120), "{:?}", Counts::read(dir.path()));
        shown(&mut shadow);
    }
    let counts = counted().unwrap();
    assert_eq!((counts.agreed, counts.more, counts.proposal()), (0, 0, None));
    drop(shadow);
    drop(journal);
    let archive = Archive::open(dir.path()).unwrap();
    let kept = archive.disagreements(&candidate.manifest.sha256, 9).unwrap();
    let one = kept.last().unwrap();
    assert!(one.in_use_says > 0.9 && one.candidate_says < 0.5 && one.path.is_file(), "{one:?}");
    let approach = archive.approach(one.approach).unwrap().unwrap();
    assert!(approach.pictures.is_empty(), "it is no picture of the visit");
    assert!(archive.disagreements("another", 9).unwrap().is_empty());
}

fn p99(cycles: &Mutex<Vec<u64>>) -> u64 {
    let mut taken = std::mem::take(&mut *cycles.lock().unwrap());
    taken.sort_unstable();
    taken[taken.len() * 99 / 100]
}

fn memory() -> u64 {
    pawlatch::owner::metrics::memory().unwrap()
}

/// Floods the page as hard as two threads can and measures the control cycle before and
/// meanwhile: 50 ms apart as always.
#[test]
#[ignore = "a measurement: cargo test --workspace --test owner -- --ignored --nocapture flood"]
fn a_flood_does_not_move_the_door() {
    let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
    // The broker does not exist; its thread tries for ever.
    let door = Door::start_alone(&[("PAWLATCH__MQTT__BROKER", "mqtt://127.0.0.1:1")], true);
    let to = door.at([127, 0, 0, 1]);
    std::thread::sleep(Duration::from_secs(1));
    door.cycles.lock().unwrap().clear();
    std::thread::sleep(Duration::from_secs(6));
    let (before, memory_before) = (p99(&door.cycles), memory());
    let over = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU64::new(0));
    let flood = |path: &'static str, body: &'static str| {
        let (over, asked) = (Arc::clone(&over), Arc::clone(&asked));
        std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                let method = if body.is_empty() { "GET" } else { "POST" };
                let kind = [("content-type", "application/x-www-form-urlencoded")];
                let _ = ask(to, method, path, &kind, body);
                asked.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(900));
            }
        })
    };
    let floods = [flood("/", ""), flood("/login", "password=guess")];
    // Clients that begin and never go on.
    let slow: Vec<TcpStream> = (0..200)
        .filter_map(|_| {
            let mut stream = TcpStream::connect(to).ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\nho").ok()?;
            Some(stream)
        })
        .collect();
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(8));
    let rate = asked.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    let (meanwhile, memory_meanwhile) = (p99(&door.cycles), memory());
    over.store(true, Ordering::SeqCst);
    for flood in floods {
        flood.join().unwrap();
    }
    drop(slow);
    println!(
        "control cycle p99: {:.1} ms before, {:.1} ms under {rate:.0} requests/s and 200 slow \
         clients; memory {:.0} -> {:.0} MB",
        before as f64 / 1e3,
        meanwhile as f64 / 1e3,
        memory_before as f64 / 1e6,
        memory_meanwhile as f64 / 1e6
    );
    assert!(asked.load(Ordering::Relaxed) > 50, "there was no flood");
    assert!(meanwhile < before + 30_000, "the control cycle is late");
    assert!(memory_meanwhile < memory_before + 50_000_000);
    // And it still serves who waits a moment.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(door.ask("GET", "/login", &[], "").status, 200);
}
