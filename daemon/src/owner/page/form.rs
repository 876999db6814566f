//! Who is asking, whether they may, and what is answered if not.
//!
//! | asked by | proves itself with | may |
//! |---|---|---|
//! | the owner's browser | session cookie; each change a ticket of that session | everything |
//! | a program | `Authorization: Bearer` | `/api/…` and `/metrics`, as far as its scope goes |
//! | anybody | nothing | log in; fetch style, script, icon |
//!
//! Every request must name the door by an address or a local or configured name (no DNS
//! rebinding); every POST must come from the page itself, as the browser says (`Origin`,
//! `Sec-Fetch-Site`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, Form, FromRequest, Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use serde_json::json;

use super::{Page, layout};
use crate::owner::access::{AccessError, Scope, TicketIs};
use crate::owner::settings::PageSettings;

/// Name of the session's cookie.
pub(super) const COOKIE: &str = "pawlatch";
/// How long one request may take, its body included.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The same where a model is uploaded, examined, or looks at every picture of the animals.
const UPLOAD_WITHIN: Duration = Duration::from_secs(300);
/// Nothing from elsewhere, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; \
     connect-src 'self'; manifest-src 'self'; form-action 'self'; frame-ancestors 'none'; \
     base-uri 'none'";

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no such page, or nothing there any more.
    NotFound,
    /// Known, but not by this method.
    Method,
    /// Nobody known, or not any more.
    Unknown,
    /// Known, but may not do this.
    Scope,
    /// From another site, or by another name than the door's.
    Foreign,
    /// The ticket is missing, used, or of another session.
    Ticket,
    /// The form or the order is too old.
    Stale,
    /// What was sent cannot be understood.
    Malformed,
    /// Too much at once, or locked out.
    TooMany(Duration),
    /// The door cannot be asked at present.
    Busy,
    /// The journal cannot be read.
    Journal,
    /// A fault of the page itself.
    Failed,
}

impl Refusal {
    fn told(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::NotFound => {
                (S::NOT_FOUND, "not_found", "There is nothing here, or not any more.")
            }
            Self::Method => (S::METHOD_NOT_ALLOWED, "method", "This cannot be asked in this way."),
            Self::Unknown => (S::UNAUTHORIZED, "unknown", "Log in, or give a valid token."),
            Self::Scope => (S::FORBIDDEN, "scope", "This token may not do that."),
            Self::Foreign => (
                S::FORBIDDEN,
                "foreign",
                "This request came from another site, or called the door by a name it does not \
                 know. Names of your own belong into page.hosts.",
            ),
            Self::Ticket => (
                S::FORBIDDEN,
                "ticket",
                "This form was sent already, or not from this page. Nothing has been done; go \
                 back, reload the page and try again.",
            ),
            Self::Stale => (
                S::FORBIDDEN,
                "stale",
                "This form or order is too old. Nothing has been done; go back, reload the page \
                 and try again.",
            ),
            Self::Malformed => {
                (S::UNPROCESSABLE_ENTITY, "malformed", "What was sent cannot be understood.")
            }
            Self::TooMany(_) => {
                (S::TOO_MANY_REQUESTS, "too_many", "Too much at once. Wait a while.")
            }
            Self::Busy => (S::SERVICE_UNAVAILABLE, "busy", "The door cannot be asked at present."),
            Self::Journal => (S::SERVICE_UNAVAILABLE, "journal", "The journal cannot be read."),
            Self::Failed => {
                (S::INTERNAL_SERVER_ERROR, "failed", "The page failed; the log says why.")
            }
        }
    }

    /// As a page, or as JSON for a program.
    fn answer(self, program: bool) -> Response {
        let (status, error, words) = self.told();
        let mut response = if program {
            (status, Json(json!({ "error": error, "words": words }))).into_response()
        } else {
            (
                status,
                layout::plain(
                    words,
                    maud::html! {
                        h1 { (words) }
                        p { a href="/" { "To the door" } }
                    },
                ),
            )
                .into_response()
        };
        if let Self::TooMany(wait) = self {
            let seconds = HeaderValue::from(wait.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // The guard puts it into words, since it knows who asked.
        let mut response = self.told().0.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<AccessError> for Refusal {
    fn from(error: AccessError) -> Self {
        tracing::warn!(%error, "passwords and tokens");
        Self::Failed
    }
}

/// Who is asking.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// For the audit trail.
    pub who: String,
    /// What they may do; `None`: nobody known.
    pub scope: Option<Scope>,
    /// The secret of their session.
    pub session: Option<String>,
    /// Where they are.
    pub address: IpAddr,
}

/// Stands before every handler.
pub(super) async fn guard(
    State(page): State<Arc<Page>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let program = path.starts_with("/api/") || path == "/metrics";
    let address = address(peer.ip(), request.headers(), &page.house.settings.page);
    let mut response = match admit(&page, address, &request, program) {
        Ok(Admitted::As(caller)) => {
            request.extensions_mut().insert(caller);
            let long = ["/models/add", "/models/use", "/animals/again"].contains(&path.as_str());
            let within = if long { UPLOAD_WITHIN } else { ANSWER_WITHIN };
            match tokio::time::timeout(within, next.run(request)).await {
                Ok(response) => response,
                Err(_) => Refusal::Busy.into_response(),
            }
        }
        Ok(Admitted::Elsewhere(to)) => Redirect::to(to).into_response(),
        Err(refusal) => refusal.into_response(),
    };
    if let Some(refusal) = response.extensions().get::<Refusal>().copied() {
        response = refusal.answer(program);
    }
    add_headers(response.headers_mut());
    response
}

enum Admitted {
    As(Caller),
    Elsewhere(&'static str),
}

fn admit(
    page: &Page,
    address: IpAddr,
    request: &Request,
    program: bool,
) -> Result<Admitted, Refusal> {
    let now = page.house.clock.now();
    if !page.rates.allow(address, now) {
        return Err(Refusal::TooMany(Duration::from_secs(1)));
    }
    let headers = request.headers();
    if !is_our_name(headers, &page.house.settings.page) {
        return Err(Refusal::Foreign);
    }
    let changes = request.method() != Method::GET && request.method() != Method::HEAD;
    if changes && !is_from_here(headers) {
        return Err(Refusal::Foreign);
    }
    let path = request.uri().path();
    let bearer = bearer(headers).filter(|_| program);
    let mut access = page.house.access();
    let caller = if let Some(secret) = bearer {
        match access.token(secret) {
            Some(token) => Caller {
                who: format!("token {} from {address}", token.name),
                scope: Some(token.scope),
                session: None,
                address,
            },
            // Nobody guesses 256 bits at the rate that is allowed, so nobody is locked out.
            None => return Err(Refusal::Unknown),
        }
    } else {
        let session = cookie(headers).filter(|secret| access.is_session(secret, now));
        let scope = session.as_ref().map(|_| Scope::Admin);
        let session = session.map(str::to_owned);
        Caller { who: format!("page from {address}"), scope, session, address }
    };
    if caller.scope.is_some() || is_for_anybody(path) {
        return Ok(Admitted::As(caller));
    }
    match (program || changes, access.password_hash().is_some()) {
        (true, _) => Err(Refusal::Unknown),
        (false, true) => Ok(Admitted::Elsewhere("/login")),
        (false, false) => Ok(Admitted::Elsewhere("/setup")),
    }
}

/// What needs no log-in.
fn is_for_anybody(path: &str) -> bool {
    matches!(
        path,
        "/login"
            | "/setup"
            | "/api/openapi.json"
            | "/page.css"
            | "/page.js"
            | "/icon.svg"
            | "/icon-192.png"
            | "/icon-512.png"
            | "/manifest.webmanifest"
    )
}

/// Where the request comes from. Behind a proxy its last word counts: what stands before it in
/// the list, anybody can write.
fn address(peer: IpAddr, headers: &HeaderMap, settings: &PageSettings) -> IpAddr {
    if !settings.behind_proxy {
        return peer;
    }
    headers
        .get_all("x-forwarded-for")
        .iter()
        .next_back()
        .and_then(|value| value.to_str().ok())
        .and_then(|list| list.rsplit(',').next())
        .and_then(|last| last.trim().parse().ok())
        .unwrap_or(peer)
}

/// Whether the door is called by an address, a name that cannot be bought, or one of its own.
fn is_our_name(headers: &HeaderMap, settings: &PageSettings) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let host = host.to_ascii_lowercase();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host.as_str(),
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let local = [".local", ".lan", ".home.arpa"].iter().any(|ending| name.ends_with(ending));
    let plain = !name.is_empty() && !name.contains('.') && !name.contains(':');
    bare.parse::<IpAddr>().is_ok() || plain || local || settings.hosts.iter().any(|h| h == name)
}

/// Whether a browser sent this from a page of ours, or it was no browser.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let site = text(HeaderName::from_static("sec-fetch-site"));
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return false;
    }
    let Some(origin) = text(header::ORIGIN) else { return true };
    let host = text(header::HOST);
    origin.split_once("://").is_some_and(|(_, rest)| Some(rest) == host)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// The header that sets the session's cookie, or takes it away.
pub(super) fn set_cookie(secret: Option<&str>, settings: &PageSettings) -> HeaderValue {
    let secure = settings.tls.is_some() || settings.behind_proxy;
    let (value, age) = secret.map_or(("", 0), |secret| (secret, 30 * 24 * 3_600));
    let text = format!(
        "{COOKIE}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={age}{}",
        if secure { "; Secure" } else { "" }
    );
    // Base64 and ASCII only.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// What every answer carries.
pub(super) fn add_headers(headers: &mut HeaderMap) {
    let set = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // Not "no-referrer": browsers would then send forms with `Origin: null`.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=()"),
    ];
    for (name, value) in set {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

/// A form that somebody sent, and whether its ticket is good.
pub(super) struct Sent {
    /// Who.
    pub caller: Caller,
    /// Names and values, in order.
    pub fields: Vec<(String, String)>,
    /// What its ticket is worth; it is used up now.
    pub ticket: TicketIs,
}

impl Sent {
    /// The value called `name`, without spaces around it; empty if it is not there.
    pub fn get(&self, name: &str) -> &str {
        self.fields.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value.trim())
    }

    /// The value called `name` as it was typed; empty if it is not there.
    pub fn get_raw(&self, name: &str) -> &str {
        self.fields.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// Goes on only with a session and a good ticket.
    pub fn checked(self) -> Result<Self, Refusal> {
        if self.caller.session.is_none() {
            return Err(Refusal::Unknown);
        }
        match self.ticket {
            TicketIs::Good => Ok(self),
            TicketIs::Unknown => Err(Refusal::Ticket),
            TicketIs::Expired => Err(Refusal::Stale),
        }
    }
}

impl FromRequest<Arc<Page>> for Sent {
    type Rejection = Refusal;

    async fn from_request(request: Request, page: &Arc<Page>) -> Result<Self, Refusal> {
        let caller = request.extensions().get::<Caller>().cloned().ok_or(Refusal::Unknown)?;
        let Form(fields) = Form::<Vec<(String, String)>>::from_request(request, page)
            .await
            .map_err(|_| Refusal::Malformed)?;
        let sent = fields.iter().find(|(name, _)| name == "ticket").map_or("", |(_, t)| t.as_str());
        let ticket = check_ticket(page, &caller, sent);
        Ok(Self { caller, fields, ticket })
    }
}

/// What a ticket is worth; it is used up.
pub(super) fn check_ticket(page: &Page, caller: &Caller, ticket: &str) -> TicketIs {
    let now = page.house.clock.now();
    caller
        .session
        .as_ref()
        .map_or(TicketIs::Unknown, |session| page.house.access().use_ticket(session, ticket, now))
}

/// A ticket for a form of this caller's page; empty without a session.
pub(super) fn ticket(page: &Page, caller: &Caller) -> Result<String, Refusal> {
    let Some(session) = &caller.session else { return Ok(String::new()) };
    let ticket = page.house.access().ticket(session, page.house.clock.now())?;
    Ok(ticket.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn only_names_that_cannot_be_bought_or_are_configured_are_ours() {
        let settings =
            PageSettings { hosts: vec!["door.example".to_owned()], ..PageSettings::default() };
        let ours = |host: &str| is_our_name(&headers(&[("host", host)]), &settings);
        for host in [
            "127.0.0.1:8480",
            "[::1]:8480",
            "[fe80::1]",
            "localhost",
            "raspberrypi:8480",
            "door.local",
            "DOOR.example:1",
        ] {
            assert!(ours(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8480",
            "",
            ":8480",
            "local.evil.example",
            "127.0.0.1.evil.example",
        ] {
            assert!(!ours(host), "{host}");
        }
        assert!(!is_our_name(&HeaderMap::new(), &settings));
    }

    #[test]
    fn a_form_of_another_site_is_foreign() {
        let here = |pairs: &[(&'static str, &str)]| is_from_here(&headers(pairs));
        assert!(here(&[("host", "door.local"), ("origin", "http://door.local")]));
        assert!(here(&[("host", "door.local")]));
        assert!(here(&[("host", "door.local"), ("sec-fetch-site", "same-origin")]));
        assert!(!here(&[("host", "door.local"), ("origin", "http://evil.example")]));
        assert!(!here(&[("host", "door.local"), ("origin", "null")]));
        assert!(!here(&[("host", "door.local"), ("sec-fetch-site", "cross-site")]));
        assert!(!here(&[("host", "door.local"), ("sec-fetch-site", "same-site")]));
        assert!(!here(&[("host", "door.local:1"), ("origin", "http://door.local:2")]));
    }

    #[test]
    fn behind_a_proxy_only_its_own_word_counts() {
        let proxied = PageSettings { behind_proxy: true, ..PageSettings::default() };
        let peer = IpAddr::from([127, 0, 0, 1]);
        let forged = headers(&[("x-forwarded-for", "10.0.0.1, 203.0.113.9")]);
        assert_eq!(address(peer, &forged, &proxied), IpAddr::from([203, 0, 113, 9]));
        assert_eq!(address(peer, &forged, &PageSettings::default()), peer);
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let found = |text| cookie(&headers(&[("cookie", text)])).map(str::to_owned);
        assert_eq!(found("a=b; pawlatch=x; c=d").as_deref(), Some("x"));
        assert_eq!(found("pawlatchx=y; notpawlatch=z"), None);
        let cookie = set_cookie(Some("abc"), &PageSettings::default());
        let cookie = cookie.to_str().unwrap();
        assert!(cookie.contains("HttpOnly; SameSite=Strict"), "{cookie}");
    }
}
