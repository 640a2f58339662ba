use super::documents::heading_levels;
use super::{File, check, manifests, sources};
use serde_json::json;

fn file(path: &str, text: &str) -> File {
    File { path: path.to_owned(), text: text.to_owned() }
}

#[test]
fn the_repository_is_tidy() {
    assert_eq!(check(&crate::root()).unwrap(), Vec::<String>::new());
}

#[test]
fn layers_point_down() {
    let package = |name: &str, layer: u64, needs: &str, kind: Option<&str>| json!({"name": name, "metadata": {"layer": layer}, "dependencies": [{"name": needs, "kind": kind}]});
    let down = [package("a", 2, "b", None), package("b", 1, "serde", None)];
    assert!(manifests::layers(&down).is_empty());
    let up = [package("a", 1, "b", None), package("b", 2, "serde", None)];
    assert_eq!(manifests::layers(&up).len(), 1);
    assert_eq!(manifests::layers(&[package("a", 1, "b", None), package("b", 1, "serde", None)]).len(), 1);
    assert!(
        manifests::layers(&[package("a", 1, "b", Some("dev")), package("b", 1, "serde", None)]).is_empty()
    );
    assert_eq!(manifests::layers(&[json!({"name": "a", "metadata": null})]).len(), 1);
}

#[test]
fn dependencies_are_declared_once_with_a_reason() {
    let root = file(
        "Cargo.toml",
        "[workspace.dependencies]\na = { path = \"a\" }\n\n# why\nb = \"1\"\n\nc = \"1\"\n[x]\nd = 1\n",
    );
    assert_eq!(manifests::uncommented(&root).len(), 1);
    let member =
        file("crates/a/Cargo.toml", "[dependencies]\nb.workspace = true\nc = \"1\"\n[lints]\nx = 1\n");
    assert_eq!(manifests::own_versions(&member).len(), 1);
}

#[test]
fn an_unsafe_block_needs_a_note() {
    let block = ["unsafe", "{ f() }"].join(" ");
    assert_eq!(sources::check(&file("a.rs", &block)).len(), 1);
    assert!(
        sources::check(&file("a.rs", &format!("// SAFETY: f has no precondition here\n{block}"))).is_empty()
    );
    assert!(sources::check(&file("a.rs", &format!("// no {block} here"))).is_empty());
}

#[test]
fn an_open_task_needs_an_issue() {
    let mark = ["TO", "DO"].concat();
    assert_eq!(sources::check(&file("a.rs", &format!("// {mark} later"))).len(), 1);
    assert!(sources::check(&file("a.rs", &format!("// {mark} #12 later"))).is_empty());
    assert!(sources::check(&file("a.txt", &mark)).is_empty());
}

#[test]
fn paths_of_a_machine_are_found_and_lookalikes_are_not() {
    let path = ["", "home", "me", "x"].join("/");
    assert_eq!(sources::check(&file("a.md", &format!("see {path}"))).len(), 1);
    assert!(
        sources::check(&file("a.md", &format!("see https://example.org{path} and frame{path}"))).is_empty()
    );
}

#[test]
fn a_file_has_a_bound() {
    assert_eq!(sources::check(&file("a.rs", &"\n".repeat(801))).len(), 1);
    assert!(sources::check(&file("a.rs", &"\n".repeat(800))).is_empty());
}

#[test]
fn headings_inside_fences_do_not_count() {
    assert_eq!(heading_levels("# a\n```\n# b\n```\n## c\n"), [1, 2]);
}
