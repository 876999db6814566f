//! The page of safe mode: one page, whatever is asked. It reads nothing and obeys nothing.

use std::path::Path;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum_server::Handle;
use maud::html;

use super::super::PageSettings;
use super::super::access::Access;
use super::{RETRY, assets, form, layout, listen_at, permitted};

/// Serves it until the thread ends; where, is as for the page: on this machine only unless a
/// password has been set.
pub(in crate::owner) fn serve(settings: &PageSettings, state_dir: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(listen(settings, state_dir)),
        Err(error) => tracing::error!(%error, "the page cannot be served"),
    }
}

async fn listen(settings: &PageSettings, state_dir: &Path) {
    let Some(wanted) = settings.listen else { return };
    let secured = Access::open(state_dir).is_ok_and(|access| access.password_hash().is_some());
    let address = permitted(wanted, secured);
    loop {
        tracing::info!(%address, secured, "the page of safe mode listens");
        if let Err(error) = listen_at(router(), settings, address, Handle::new()).await {
            tracing::warn!(%error, %address, "the page cannot listen");
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn router() -> Router {
    assets().fallback(page).layer(middleware::map_response(async |mut response: Response| {
        form::add_headers(response.headers_mut());
        response
    }))
}

async fn page() -> Response {
    let body = html! {
        (layout::notice("bad", "The door stays locked: it could not be started."))
        p {
            "It has failed to start ten times in a row, so it is kept locked. In ten minutes at most "
            "it is tried once more, by itself; what was broken may be whole again by then. Nothing "
            "can be ordered here meanwhile, and nobody is let in."
        }
        h2 { "For whoever looks after it" }
        ul {
            li { code { "pawlatch doctor" } " says what is broken, and what to do." }
            li { code { "journalctl -u pawlatch" } " says why it ended each time." }
            li {
                "Once it is mended: " code { "pawlatch update retry" } ", then "
                code { "systemctl restart pawlatch" } "."
            }
        }
    };
    let again = [(header::RETRY_AFTER, "60")];
    (StatusCode::SERVICE_UNAVAILABLE, again, layout::plain("Safe mode", body)).into_response()
}
