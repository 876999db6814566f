//! The trainer of Pawlatch: data, networks, training, surgery and evaluation.
//!
//! A network is data ([`net::Net`], a typed subset of ONNX). Freezing a part of it is cutting it
//! off ([`net::Net::cut`]): what the frozen part computes is cached ([`cache`]) and only the rest
//! is trained ([`train`]), by an engine ([`engine`]) that knows operations, not architectures.
//! What is measured ([`evaluate`]) runs through `pawlatch_core::vision`, as on the door.

pub mod bundle;
pub mod cache;
pub mod classification;
mod conv;
pub mod data;
pub mod detector;
pub mod engine;
pub mod evaluate;
pub mod export;
pub mod files;
pub mod head;
pub mod inside;
pub mod localize;
pub use pawlatch_core::metrics;
pub mod net;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod retrain;
pub mod show;
pub mod train;
pub mod weights;
pub mod workers;
