//! What all pages have in common.

use axum::response::Html;
use maud::{DOCTYPE, Markup, html};
use pawlatch_core::sight::Class;

/// A whole page.
pub(super) type Answer = Html<String>;

/// The sections of the page: address, name.
const SECTIONS: [(&str, &str); 8] = [
    ("/", "Now"),
    ("/visits", "Visits"),
    ("/animals", "Animals"),
    ("/rules", "Rules"),
    ("/camera", "Camera"),
    ("/models", "Models"),
    ("/health", "Health"),
    ("/settings", "Settings"),
];

/// A page of the section at `here`.
pub(super) fn page(here: &str, title: &str, body: Markup) -> Answer {
    whole(
        title,
        html! {
            header .top {
                a .brand href="/" { (paw()) "Pawlatch" }
                nav aria-label="Sections" {
                    ul {
                        @for (address, name) in SECTIONS {
                            li { a href=(address) aria-current=[(address == here).then_some("page")] { (name) } }
                        }
                    }
                }
            }
            main id="main" { (body) }
        },
    )
}

/// A page without sections: before somebody has logged in, and for what went wrong.
pub(super) fn plain(title: &str, body: Markup) -> Answer {
    whole(
        title,
        html! {
            header .top { span .brand { (paw()) "Pawlatch" } }
            main .narrow id="main" { (body) }
        },
    )
}

fn whole(title: &str, body: Markup) -> Answer {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="theme-color" content="#0072b2";
                title { (title) " · Pawlatch" }
                link rel="stylesheet" href=(concat!("/page.css?v=", env!("CARGO_PKG_VERSION")));
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                link rel="apple-touch-icon" href="/icon-192.png";
                link rel="manifest" href="/manifest.webmanifest";
                script src=(concat!("/page.js?v=", env!("CARGO_PKG_VERSION"))) defer {}
            }
            body {
                a .skip href="#main" { "Skip to content" }
                (body)
            }
        }
    };
    Html(page.into_string())
}

/// The hidden field that carries a form's ticket.
pub(super) fn ticket(ticket: &str) -> Markup {
    html! { input type="hidden" name="ticket" value=(ticket); }
}

/// Something that needs saying: `tone` is good, bad or plain.
pub(super) fn notice(tone: &str, words: &str) -> Markup {
    html! { p .notice .(tone) role=(if tone == "bad" { "alert" } else { "status" }) { (words) } }
}

/// The name of a class, in its colour.
pub(super) fn class(class: Class) -> Markup {
    html! { span class={ "class " (class.name()) } { (crate::owner::words::called(class)) } }
}

/// A padlock, open or shut.
pub(super) fn lock(open: bool) -> Markup {
    let shackle = if open { "M8 11V7a4 4 0 0 1 7.6-1.7" } else { "M8 11V7a4 4 0 0 1 8 0v4" };
    html! {
        svg .lock viewBox="0 0 24 24" aria-hidden="true" {
            path d=(shackle) {}
            rect x="5" y="11" width="14" height="10" rx="2.5" {}
        }
    }
}

fn paw() -> Markup {
    html! {
        svg .paw viewBox="0 0 24 24" aria-hidden="true" {
            ellipse cx="12" cy="16.5" rx="5.2" ry="4.2" {}
            circle cx="5" cy="10.5" r="2.1" {}
            circle cx="9.6" cy="6.4" r="2.2" {}
            circle cx="14.4" cy="6.4" r="2.2" {}
            circle cx="19" cy="10.5" r="2.1" {}
        }
    }
}
