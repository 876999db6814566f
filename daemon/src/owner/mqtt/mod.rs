//! Home Assistant and other listeners, by an MQTT broker.
//!
//! | topic below `mqtt.topic` | holds |
//! |---|---|
//! | `available` | `online`, or `offline` by last will; retained |
//! | `latch` | what the bolt is *seen* to be: `LOCKED`, `UNLOCKED`, `LOCKING`, `UNLOCKING`, `JAMMED`, or `None` for unknown; retained |
//! | `state` | what the door is doing, and its problem, as JSON; retained |
//! | `visit` | each visit that is over, as JSON; not retained |
//! | `visit/last` | the last visit in words; retained |
//! | `visit/picture` | its picture, a JPEG; retained |
//! | `machine` | temperature and version, as JSON; retained |
//! | `latch/set` | commands `LOCK`, `UNLOCK`, `OPEN` |
//! | `order` | commands by the names of [`Order`] |
//!
//! What was said while the connection was down is not said later: after each connection the
//! present is told afresh. Commands that the broker kept for us (retained, or of an earlier
//! session) are not obeyed, since nobody knows how old they are.

mod discovery;

use std::sync::Arc;
use std::time::Duration;

use pawlatch_core::door::{Position, State};
use rumqttc::{
    AsyncClient, Event, EventLoop, LastWill, MqttOptions, Packet, QoS, TlsConfiguration, Transport,
};
use serde_json::json;
use thiserror::Error;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::board::{Glance, News};
use super::house::{House, Order};
use super::settings::{Broker, MqttSettings};
use super::words;
use crate::report::jpeg;

pub use discovery::{Announced, announced};

/// Messages that may wait to be sent.
const OUTGOING: usize = 64;
/// Largest packet either way, bytes: a picture fits.
const MAX_PACKET: usize = 1 << 20;
/// First and longest pause before the next attempt to connect.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How often temperature and the like are told.
const MACHINE_EVERY: Duration = Duration::from_secs(60);
/// Shortest time between two messages about the state.
const STATE_EVERY: Duration = Duration::from_millis(250);
/// Commands of one minute that are obeyed; more come from something that has run wild.
const ORDERS_PER_MINUTE: usize = 30;
/// Longest side of the picture, pixels.
const SIDE: u32 = 640;

/// Why the broker cannot be spoken to.
#[derive(Debug, Error)]
pub enum MqttError {
    /// A file of the connection cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no runtime.
    #[error("the broker's thread cannot wait for anything")]
    Runtime(#[source] std::io::Error),
}

/// What the connection reports.
#[derive(Debug)]
enum Heard {
    Up,
    Down,
    Command { topic: String, payload: Vec<u8>, retained: bool },
}

/// Speaks to the broker until the thread ends.
pub(super) fn run(house: &Arc<House>) {
    let Some(broker) = house.settings.mqtt.broker.clone() else { return };
    if let Err(error) = try_run(house, &broker) {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(%error, cause, "the broker cannot be spoken to");
    }
}

fn try_run(house: &Arc<House>, broker: &Broker) -> Result<(), MqttError> {
    let options = options(&house.settings.mqtt, broker)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .map_err(MqttError::Runtime)?;
    runtime.block_on(async {
        let (client, connection) = AsyncClient::new(options, OUTGOING);
        let (hears, heard) = mpsc::channel(OUTGOING);
        tokio::spawn(keep_connected(connection, hears, tokio::time::sleep));
        Speaker::new(house, client).run(heard).await;
    });
    Ok(())
}

fn options(settings: &MqttSettings, broker: &Broker) -> Result<MqttOptions, MqttError> {
    let read = |path: &std::path::Path| {
        let failed = |source| MqttError::Read { path: path.to_owned(), source };
        std::fs::read_to_string(path).map_err(failed)
    };
    let id = format!("pawlatch-{}", discovery::node_id(&settings.topic));
    let mut options = MqttOptions::new(id, broker.host.clone(), broker.port);
    options.set_keep_alive(KEEP_ALIVE);
    options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
    // The broker shall keep nothing for us: what it kept would be stale.
    options.set_clean_session(true);
    let will = LastWill::new(topic(settings, "available"), "offline", QoS::AtLeastOnce, true);
    options.set_last_will(will);
    if let Some(username) = &settings.username {
        let password = settings.password_path.as_deref().map(read).transpose()?;
        let password = password.unwrap_or_default();
        options.set_credentials(username, password.trim_end_matches(['\n', '\r']));
    }
    if let (true, Some(path)) = (broker.tls, &settings.ca_path) {
        let ca = read(path)?.into_bytes();
        let simple = TlsConfiguration::Simple { ca, alpn: None, client_auth: None };
        options.set_transport(Transport::Tls(simple));
    }
    Ok(options)
}

/// A topic of this door.
fn topic(settings: &MqttSettings, name: &str) -> String {
    format!("{}/{name}", settings.topic)
}

/// Connects again and again, with a longer pause each time.
async fn keep_connected(
    mut connection: EventLoop,
    hears: mpsc::Sender<Heard>,
    wait: impl AsyncFn(Duration),
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let heard = match connection.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                pause = FIRST_PAUSE;
                Heard::Up
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => Heard::Command {
                topic: publish.topic,
                payload: publish.payload.to_vec(),
                retained: publish.retain,
            },
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(%error, retry_s = pause.as_secs(), "no connection to the broker");
                // What waited is stale by the time there is a connection again.
                connection.pending.clear();
                if hears.send(Heard::Down).await.is_err() {
                    return;
                }
                wait(pause).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
                continue;
            }
        };
        if hears.send(heard).await.is_err() {
            return;
        }
    }
}

/// Tells the broker, and obeys it.
struct Speaker<'a> {
    house: &'a Arc<House>,
    settings: &'a MqttSettings,
    client: AsyncClient,
    up: bool,
    told_latch: Option<&'static str>,
    told_state: String,
    orders: Vec<tokio::time::Instant>,
}

impl<'a> Speaker<'a> {
    fn new(house: &'a Arc<House>, client: AsyncClient) -> Self {
        Self {
            house,
            settings: &house.settings.mqtt,
            client,
            up: false,
            told_latch: None,
            told_state: String::new(),
            orders: Vec::new(),
        }
    }

    async fn run(mut self, mut heard: mpsc::Receiver<Heard>) {
        let mut news = self.house.board.news();
        let mut machine = tokio::time::interval(MACHINE_EVERY);
        let mut state = tokio::time::interval(STATE_EVERY);
        state.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = heard.recv() => match heard {
                    Some(Heard::Up) => self.greet(),
                    Some(Heard::Down) => self.up = false,
                    Some(Heard::Command { topic, payload, retained }) => {
                        self.obey(&topic, &payload, retained);
                    }
                    None => return,
                },
                told = news.recv() => match told {
                    Ok(told) => self.tell(told),
                    // Too slow for some of it; the present is told in any case.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                _ = state.tick() => self.tell_state(),
                _ = machine.tick() => self.tell_machine(),
            }
        }
    }

    /// Says something. Never waits: what there is no room for is lost.
    fn say(&self, name: &str, retain: bool, payload: impl Into<Vec<u8>>) {
        self.say_at(&topic(self.settings, name), retain, payload);
    }

    fn say_at(&self, topic: &str, retain: bool, payload: impl Into<Vec<u8>>) {
        if self.up && self.client.try_publish(topic, QoS::AtLeastOnce, retain, payload).is_err() {
            tracing::debug!(topic, "no room to tell the broker");
        }
    }

    /// After each connection: who we are, and how everything stands now.
    fn greet(&mut self) {
        tracing::info!("connected to the broker");
        self.up = true;
        self.told_latch = None;
        self.told_state = String::new();
        for name in ["latch/set", "order"] {
            let _ = self.client.try_subscribe(topic(self.settings, name), QoS::AtLeastOnce);
        }
        for Announced { topic, payload } in announced(self.settings) {
            self.say_at(&topic, true, payload.to_string());
        }
        self.say("available", true, "online");
        if self.house.board.now().is_none() {
            self.say("latch", true, "None");
        }
        self.tell_state();
        self.tell_machine();
    }

    fn tell_state(&mut self) {
        if !self.up {
            return;
        }
        let Some(glance) = self.house.board.now() else { return };
        let latch = latch_word(&glance, self.house.silent_after());
        if self.told_latch != Some(latch) {
            self.told_latch = Some(latch);
            self.say("latch", true, latch);
        }
        let problem = match glance.state {
            State::Fault { cause, .. } => Some(cause.describe()),
            _ => None,
        };
        let state = json!({
            "state": glance.state.name(),
            "problem": if problem.is_some() { "ON" } else { "OFF" },
            "cause": problem.unwrap_or("none"),
        })
        .to_string();
        if self.told_state != state {
            self.say("state", true, state.clone());
            self.told_state = state;
        }
    }

    fn tell_machine(&self) {
        let version = env!("CARGO_PKG_VERSION");
        self.say(
            "machine",
            true,
            json!({
                "temperature": super::metrics::temperature(),
                "installed_version": version,
                "latest_version": version,
            })
            .to_string(),
        );
    }

    fn tell(&self, told: News) {
        let News::Visit { visit, picture } = told else { return };
        let words = visit.sentence(&self.house.time_zone());
        let refused = visit.refused().map(words::called);
        let message = json!({
            "event_type": visit.verdict,
            "words": words,
            "kept_out": refused,
            "seconds": visit.lasted().map(|d| d.as_secs_f64()),
        });
        self.say("visit", false, message.to_string());
        self.say("visit/last", true, words);
        let Some(frame) = picture else { return };
        let pixels = frame.pixels().to_vec();
        let drawn = image::RgbImage::from_raw(frame.width(), frame.height(), pixels)
            .and_then(|picture| jpeg(picture, SIDE).ok());
        if let Some((bytes, ..)) = drawn {
            self.say("visit/picture", true, bytes);
        }
    }

    fn obey(&mut self, heard: &str, payload: &[u8], retained: bool) {
        let who = "broker";
        let Some(order) = understood(self.settings, heard, payload) else {
            tracing::warn!(topic = heard, "a command that is not understood");
            return;
        };
        if retained {
            self.house.audit(who, order.name(), "ignored: the broker had kept it");
            return;
        }
        let now = tokio::time::Instant::now();
        self.orders.retain(|at| now.duration_since(*at) < Duration::from_secs(60));
        if self.orders.len() >= ORDERS_PER_MINUTE {
            tracing::warn!(order = order.name(), "too many commands; ignored");
            return;
        }
        self.orders.push(now);
        if order.may_unlock() && !self.settings.may_open {
            self.house.audit(who, order.name(), "refused: mqtt.may_open is false");
            return;
        }
        self.house.order(who, order);
    }
}

/// The order that a message is.
fn understood(settings: &MqttSettings, heard: &str, payload: &[u8]) -> Option<Order> {
    let name = heard.strip_prefix(&settings.topic)?.strip_prefix('/')?;
    match (name, std::str::from_utf8(payload).ok()?) {
        ("latch/set", "LOCK") => Some(Order::HoldLocked),
        ("latch/set", "UNLOCK") => Some(Order::Release),
        ("latch/set", "OPEN") => Some(Order::OpenOnce),
        ("order", name) => Order::named(name),
        _ => None,
    }
}

/// What the bolt was seen to be, as Home Assistant's lock calls it.
fn latch_word(glance: &Glance, silent_after: Duration) -> &'static str {
    match glance.position(silent_after) {
        Position::Locked => "LOCKED",
        Position::Unlocked => "UNLOCKED",
        Position::Moving if glance.wishes_unlocked() => "UNLOCKING",
        Position::Moving => "LOCKING",
        Position::Jammed => "JAMMED",
        Position::Unknown => "None",
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use jiff::Timestamp;
    use pawlatch_core::event::Verdict;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpSocket, TcpStream};
    use tokio::sync::Notify;

    use super::*;
    use crate::clock::Clock;
    use crate::owner::access::Access;
    use crate::owner::board;
    use crate::owner::settings::OwnerSettings;
    use crate::owner::words::Visit;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn house(dir: &std::path::Path, broker: Broker) -> Arc<House> {
        let mut settings = OwnerSettings::default();
        settings.mqtt.broker = Some(broker);
        let (_, _, board) = board::board();
        let access = Access::open(dir).unwrap();
        Arc::new(House::new(settings, dir.to_owned(), None, Clock::start(), board, access))
    }

    /// Waits for nothing but the pauses between two attempts, of which it only keeps the sum.
    #[tokio::test]
    async fn a_broker_gone_for_a_day_is_tried_each_minute_and_then_told_the_present_only() {
        let dir = tempfile::tempdir().unwrap();
        // Its port is taken, but nobody listens there.
        let gone = TcpSocket::new_v4().unwrap();
        gone.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = gone.local_addr().unwrap().port();
        let broker = Broker { host: "127.0.0.1".to_owned(), port, tls: false };
        let house = house(dir.path(), broker.clone());
        let visit = |verdict| {
            let (began, events) = (Timestamp::UNIX_EPOCH, Vec::new());
            Visit { began, verdict: Some(verdict), events, goes_on: false }
        };
        let tell = |visit| {
            house.board.tell(News::Visit { visit: Arc::new(visit), picture: None });
        };

        let (client, connection) =
            AsyncClient::new(options(&house.settings.mqtt, &broker).unwrap(), OUTGOING);
        let (hears, heard) = mpsc::channel(OUTGOING);
        let (attempts, passed) = (Cell::new(0), Cell::new(Duration::ZERO));
        let (evening, back) = (Notify::new(), Notify::new());
        let wait = async |pause| {
            attempts.set(attempts.get() + 1);
            passed.set(passed.get() + pause);
            tell(visit(Verdict::Overruled));
            if passed.get() >= DAY {
                evening.notify_one();
                back.notified().await;
            }
        };
        let afterwards = async {
            evening.notified().await;
            // One, two, four, ... 32 seconds, then 60 each.
            assert_eq!(attempts.get(), 6 + (DAY.as_secs() - 63).div_ceil(60));
            let found = gone.listen(1).unwrap();
            back.notify_one();
            let (mut stream, _) = found.accept().await.unwrap();
            let mut said = Vec::new();
            until(&mut stream, &mut said, &topic(&house.settings.mqtt, "available")).await;
            stream.write_all(&[0x20, 2, 0, 0]).await.unwrap();
            until(&mut stream, &mut said, "installed_version\":").await;
            let words = |verdict| visit(verdict).sentence(&house.time_zone());
            tell(visit(Verdict::Nobody));
            until(&mut stream, &mut said, &words(Verdict::Nobody)).await;
            let said = String::from_utf8_lossy(&said);
            assert!(said.contains("online"), "{said}");
            assert!(!said.contains(&words(Verdict::Overruled)), "{said}");
        };
        tokio::select! {
            () = keep_connected(connection, hears, wait) => panic!("it gave up"),
            () = Speaker::new(&house, client).run(heard) => panic!("it has nothing to say"),
            () = afterwards => {}
        }
    }

    /// Reads on until `wanted` was said.
    async fn until(stream: &mut TcpStream, said: &mut Vec<u8>, wanted: &str) {
        while !String::from_utf8_lossy(said).contains(wanted) {
            assert_ne!(stream.read_buf(said).await.unwrap(), 0, "hung up before {wanted}");
        }
    }

    #[test]
    fn only_the_doors_own_commands_are_understood() {
        let settings = MqttSettings { topic: "home/door".to_owned(), ..MqttSettings::default() };
        let order = |topic, payload: &[u8]| understood(&settings, topic, payload);
        assert_eq!(order("home/door/latch/set", b"LOCK"), Some(Order::HoldLocked));
        assert_eq!(order("home/door/latch/set", b"UNLOCK"), Some(Order::Release));
        assert_eq!(order("home/door/order", b"open_once"), Some(Order::OpenOnce));
        for (topic, payload) in [
            ("home/door/latch/set", &b"lock"[..]),
            ("home/door/order", b""),
            ("home/door/order", b"\xff\xfe"),
            ("home/doorx/order", b"open_once"),
            ("home/door/latch", b"LOCK"),
            ("", b"LOCK"),
        ] {
            assert_eq!(order(topic, payload), None, "{topic}");
        }
    }
}
