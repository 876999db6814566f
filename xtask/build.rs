//! Tells the program for which machine it was built.

fn main() {
    let host = std::env::var("HOST").unwrap_or_default();
    println!("cargo::rustc-env=HOST={host}");
    println!("cargo::rerun-if-changed=build.rs");
}
