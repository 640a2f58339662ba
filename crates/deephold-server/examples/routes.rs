//! Writes `docs/routes.md`: `cargo run -p deephold-server --example routes > docs/routes.md`.
#![allow(missing_docs, reason = "a program that writes a document")]

fn main() {
    print!("{}", deephold_server::routes_table());
}
