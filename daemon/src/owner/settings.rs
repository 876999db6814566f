//! The settings of the owner's surfaces, valid.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use jiff::civil::Time;
use pawlatch_core::event::Verdict;

/// What the owner's surfaces are to do.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OwnerSettings {
    /// The page.
    pub page: PageSettings,
    /// The broker.
    pub mqtt: MqttSettings,
    /// Messages.
    pub notify: NotifySettings,
}

/// The page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSettings {
    /// Where it listens once the password is set; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Certificate chain and private key, PEM files; `None`: plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether a proxy on this machine speaks HTTPS to the outside.
    pub behind_proxy: bool,
    /// Names it answers to, lower case, beside addresses and local names.
    pub hosts: Vec<String>,
}

/// The usual port of the page.
const PORT: u16 = 8480;

impl Default for PageSettings {
    fn default() -> Self {
        let listen = Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT));
        Self { listen, tls: None, behind_proxy: false, hosts: Vec::new() }
    }
}

/// The broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttSettings {
    /// Which; `None`: none.
    pub broker: Option<Broker>,
    /// User name there.
    pub username: Option<String>,
    /// File with the password.
    pub password_path: Option<PathBuf>,
    /// Certificate of the authority, PEM.
    pub ca_path: Option<PathBuf>,
    /// Topic of this door, without a slash at its end.
    pub topic: String,
    /// Topic under which Home Assistant looks; empty: nothing is announced.
    pub discovery_topic: String,
    /// Whether commands may unlock.
    pub may_open: bool,
}

impl Default for MqttSettings {
    fn default() -> Self {
        Self {
            broker: None,
            username: None,
            password_path: None,
            ca_path: None,
            topic: "pawlatch".to_owned(),
            discovery_topic: "homeassistant".to_owned(),
            may_open: true,
        }
    }
}

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

impl Broker {
    /// `mqtt://HOST`, `mqtt://HOST:PORT`, or the same with `mqtts`; an IPv6 address in brackets.
    pub fn parse(text: &str) -> Option<Self> {
        let (tls, rest) = match text.split_once("://")? {
            ("mqtt", rest) => (false, rest),
            ("mqtts", rest) => (true, rest),
            _ => return None,
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (rest, if tls { 8883 } else { 1883 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        // Credentials have their own keys; here they would be told in logs.
        let sound = !host.is_empty() && !host.contains(['@', '/', ' ']) && port > 0;
        sound.then(|| Self { host: host.to_owned(), port, tls })
    }
}

/// Messages about visits and faults.
#[derive(Debug, Clone, PartialEq)]
pub struct NotifySettings {
    /// An ntfy topic.
    pub ntfy: Option<Url>,
    /// Gets each message as JSON.
    pub webhook: Option<Url>,
    /// File with a token for both.
    pub token_path: Option<PathBuf>,
    /// What is told.
    pub what: Vec<Told>,
    /// Whether a picture goes along.
    pub pictures: bool,
    /// The quiet hours, local time; they may run over midnight.
    pub quiet: Option<(Time, Time)>,
    /// When the day is summed up, local time.
    pub digest_at: Option<Time>,
}

impl Default for NotifySettings {
    fn default() -> Self {
        Self {
            ntfy: None,
            webhook: None,
            token_path: None,
            what: vec![Told::Visit(Verdict::LetIn), Told::Visit(Verdict::KeptShut), Told::Fault],
            pictures: true,
            quiet: None,
            digest_at: None,
        }
    }
}

/// Something that is worth a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A visit that ended so.
    Visit(Verdict),
    /// A fault, raised or gone.
    Fault,
}

impl Told {
    /// As the owner writes it.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "let_in" => Self::Visit(Verdict::LetIn),
            "kept_shut" => Self::Visit(Verdict::KeptShut),
            "nobody" => Self::Visit(Verdict::Nobody),
            "overruled" => Self::Visit(Verdict::Overruled),
            "fault" => Self::Fault,
            _ => return None,
        })
    }
}

/// An address that may hold a secret: it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(String);

impl Url {
    /// The address `text`.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The address, to be connected to, not to be told.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Url(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_understood_or_refused() {
        let broker = |text| Broker::parse(text).map(|b| (b.host, b.port, b.tls));
        assert_eq!(broker("mqtt://hub"), Some(("hub".to_owned(), 1883, false)));
        assert_eq!(broker("mqtts://hub:9000/"), Some(("hub".to_owned(), 9000, true)));
        assert_eq!(broker("mqtt://[::1]"), Some(("::1".to_owned(), 1883, false)));
        assert_eq!(broker("mqtt://[::1]:1884"), Some(("::1".to_owned(), 1884, false)));
        for wrong in ["hub", "http://hub", "mqtt://", "mqtt://me:secret@hub", "mqtt://hub:x"] {
            assert_eq!(broker(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_address_with_a_secret_is_not_told() {
        assert!(!format!("{:?}", Url::new("https://ntfy.example/secret")).contains("secret"));
    }
}
