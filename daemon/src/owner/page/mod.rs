//! The owner's page: HTML made here, one style sheet, one script that only adds comfort, and an
//! interface for programs.
//!
//! Served on one thread; what reads the journal or a network goes to a few helper threads. See
//! [`form`] for who may do what.

mod animals;
mod api;
mod camera;
mod form;
mod health;
mod layout;
mod limits;
mod live;
mod login;
mod models;
mod now;
mod rules;
pub(super) mod safe;
mod settings;
mod visit;
mod visits;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use tokio::sync::{Semaphore, oneshot};

use super::PageSettings;
use super::house::House;
use crate::journal::{Archive, JournalError};
use form::Refusal;

/// Largest body of a request, bytes; models have their own limit.
const MAX_BODY: usize = 64 << 10;
/// How long a client may take to send a request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Helper threads for what takes time.
const HELPERS: usize = 3;
/// Pause before listening is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is looked whether the password has been set elsewhere.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the handlers share.
#[derive(Debug)]
pub(super) struct Page {
    house: Arc<House>,
    rates: limits::Rates,
    /// Reading the journal, drawing: at most this much at a time.
    work: Semaphore,
    /// Passwords to hash, which takes 19 MiB: on one thread, since glibc keeps such memory for the
    /// thread that had it.
    hashing: mpsc::Sender<Job>,
    live: live::Live,
    heat: visit::HeatMaps,
    network: animals::Network,
}

/// Something to do on another thread.
type Job = Box<dyn FnOnce() + Send>;

type Shared = axum::extract::State<Arc<Page>>;

impl Page {
    fn new(house: &Arc<House>) -> Arc<Self> {
        let (hashing, jobs) = mpsc::channel::<Job>();
        let hasher = thread::Builder::new().name("page-hash".to_owned());
        if let Err(error) = hasher.spawn(move || jobs.into_iter().for_each(|job| job())) {
            tracing::error!(%error, "nobody can log in: no thread can be started");
        }
        Arc::new(Self {
            house: Arc::clone(house),
            rates: limits::Rates::default(),
            work: Semaphore::new(HELPERS),
            hashing,
            live: live::Live::default(),
            heat: visit::HeatMaps::default(),
            network: animals::Network::default(),
        })
    }

    /// Does `work` on a helper thread.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let _permit = self.work.acquire().await.map_err(|_| Refusal::Busy)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| Refusal::Failed)
    }

    /// Hashes a password, after those that came before.
    async fn hash<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (tell, told) = oneshot::channel();
        let job = move || drop(tell.send(work()));
        self.hashing.send(Box::new(job)).map_err(|_| Refusal::Busy)?;
        told.await.map_err(|_| Refusal::Failed)
    }

    /// Reads the journal on a helper thread. Before the door has written one, there is none.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Archive) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let dir = self.house.state_dir.clone();
        let outcome = self.aside(move || Archive::open(&dir).and_then(|a| read(&a))).await?;
        outcome.map_err(|error| {
            tracing::warn!(%error, "the page cannot read the journal");
            Refusal::Journal
        })
    }
}

/// Serves the page until the thread ends.
pub(super) fn serve(house: &Arc<House>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(HELPERS + 1)
        .thread_name("page-helper")
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(listen(house)),
        Err(error) => tracing::error!(%error, "the page cannot be served"),
    }
}

/// Listens where it may: on this machine only until the password is set.
async fn listen(house: &Arc<House>) {
    let Some(wanted) = house.settings.page.listen else { return };
    let page = Page::new(house);
    loop {
        let secured = is_secured(house);
        let address = permitted(wanted, secured);
        let handle = Handle::new();
        let watcher = tokio::spawn(watch(Arc::clone(house), handle.clone(), address != wanted));
        tracing::info!(%address, secured, "the page listens");
        let router = router(Arc::clone(&page));
        let settings = &house.settings.page;
        if let Err(error) = listen_at(router, settings, address, handle).await {
            tracing::warn!(%error, %address, "the page cannot listen");
            tokio::time::sleep(RETRY).await;
        }
        watcher.abort();
    }
}

/// Where it may listen: on this machine only until the password is set.
const fn permitted(wanted: SocketAddr, secured: bool) -> SocketAddr {
    if secured || wanted.ip().is_loopback() {
        wanted
    } else {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), wanted.port())
    }
}

/// Ends listening when the password has been set and the page may listen elsewhere.
async fn watch(house: Arc<House>, handle: Handle<SocketAddr>, restricted: bool) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if is_secured(&house) && restricted {
            return handle.graceful_shutdown(Some(LOOK_EVERY));
        }
    }
}

fn is_secured(house: &House) -> bool {
    let mut access = house.access();
    if let Err(error) = access.refresh() {
        tracing::warn!(%error, "the password file cannot be read again");
    }
    access.password_hash().is_some()
}

async fn listen_at(
    router: Router,
    settings: &PageSettings,
    address: SocketAddr,
    handle: Handle<SocketAddr>,
) -> std::io::Result<()> {
    let seats = limits::Seats::new(settings.behind_proxy);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let mut server = axum_server::bind(address)
        .handle(handle)
        .http1_only()
        .first_request_timeout(HEAD_WITHIN)
        .acceptor(seats.clone());
    server.http_builder().http1().header_read_timeout(HEAD_WITHIN);
    match &settings.tls {
        None => server.serve(service).await,
        Some((certificate, key)) => {
            let tls = RustlsConfig::from_pem_file(certificate, key).await?;
            let acceptor = RustlsAcceptor::new(tls).acceptor(seats);
            server.acceptor(acceptor).serve(service).await
        }
    }
}

/// Every address the page answers to. What changes anything is a POST.
fn router(page: Arc<Page>) -> Router {
    let pages = Router::new()
        .route("/", get(now::page))
        .route("/why", get(now::why))
        .route("/act/{request}", post(now::act))
        .route("/ticket", post(login::ticket))
        .route("/events", get(live::events))
        .route("/live.jpg", get(live::picture))
        .route("/visits", get(visits::page))
        .route("/visits/{id}", get(visit::page))
        .route("/visits/{id}/label", post(visit::label))
        .route("/visits/{id}/pictures/{n}", get(visit::picture))
        .route("/visits/{id}/heat", get(visit::heat))
        .route("/visits/{id}/export", get(visit::export))
        .route("/visits/{id}/enrol", post(animals::enrol))
        .route("/animals", get(animals::page))
        .route("/animals/aid", get(animals::aid))
        .route("/animals/take", post(animals::take))
        .route("/animals/again", post(animals::again))
        .route("/animals/remove", post(animals::remove))
        .route("/animals/paint", post(animals::paint))
        .route("/animals/pictures/{file}", get(animals::picture))
        .route("/dataset.tar", get(settings::dataset))
        .route("/rules", get(rules::page).post(rules::save))
        .route("/camera", get(camera::page).post(camera::save))
        .route("/models", get(models::page))
        .route("/models/use", post(models::put_in_use))
        .route("/models/shadow", post(models::look_on))
        .route("/models/shadow/{id}", get(models::disagreement))
        .route("/models/back", post(models::roll_back))
        .route("/models/add", post(models::add).layer(DefaultBodyLimit::max(models::MAX_UPLOAD)))
        .route("/health", get(health::page))
        .route("/settings", get(settings::page))
        .route("/settings/password", post(settings::password))
        .route("/settings/tokens", post(settings::add_token))
        .route("/settings/tokens/revoke", post(settings::revoke_token))
        .route("/settings/wipe", post(settings::wipe))
        .route("/export.tar", get(settings::export))
        .route("/logout", post(login::logout));
    let programs = Router::new()
        .route("/api/status", get(api::status))
        .route("/api/visits", get(api::visits))
        .route("/api/visits/{id}", get(api::visit))
        .route("/api/orders/{request}", post(api::order))
        .route("/metrics", get(api::metrics));
    let open = Router::new()
        .route("/login", get(login::page).post(login::log_in))
        .route("/setup", get(login::setup_page).post(login::set_up))
        .route("/api/openapi.json", get(api::description));
    pages
        .merge(programs)
        .merge(open)
        .merge(assets())
        .fallback(|| async { Refusal::NotFound })
        .method_not_allowed_fallback(|| async { Refusal::Method })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&page), form::guard))
        .with_state(page)
}

/// What every page needs and anybody may have.
fn assets<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/page.css", get(|| asset("text/css; charset=utf-8", include_bytes!("page.css"))))
        .route(
            "/page.js",
            get(|| asset("text/javascript; charset=utf-8", include_bytes!("page.js"))),
        )
        .route("/icon.svg", get(|| asset("image/svg+xml", include_bytes!("icon.svg"))))
        .route("/icon-192.png", get(|| asset("image/png", include_bytes!("icon-192.png"))))
        .route("/icon-512.png", get(|| asset("image/png", include_bytes!("icon-512.png"))))
        .route(
            "/manifest.webmanifest",
            get(|| asset("application/manifest+json", include_bytes!("manifest.webmanifest"))),
        )
}

/// Something that changes with the program only.
async fn asset(kind: &'static str, bytes: &'static [u8]) -> Response {
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "public, max-age=86400")];
    (StatusCode::OK, headers, bytes).into_response()
}
