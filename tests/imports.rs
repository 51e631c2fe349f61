//! The layers of `src/`: a top-level module imports only from layers below its own, and no files import each other in a
//! circle. Read from the `use` lines; what stands behind `#[cfg(test)]` does not count.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The top-level modules (a file of `src/`, or a folder with its file), the highest layer first. docs/architecture.md has a
/// sentence for each.
const LAYERS: [&[&str]; 12] = [
    &["main"],
    &["cmd"],
    &["dead_tasks", "sender", "status", "worker_pool"],
    &["browse"],
    &["report"],
    &["events"],
    &["settlement"],
    &["broker", "handler"],
    &["descriptors"],
    &["output"],
    &["cancel", "shutdown"],
    &[
        "backoff", "base64", "blocking", "calendar", "digest", "duration", "error", "lock", "percent",
        "shortage",
    ],
];

/// Files that only tests see.
const ONLY_FOR_TESTS: [&str; 3] = ["proptests.rs", "testing.rs", "tests.rs"];

/// A path of module names below the crate's root.
type Module = Vec<String>;

fn module(path: &str) -> Module {
    path.split("::").map(str::to_owned).collect()
}

/// Every file of `src/` with its text, by the module that it is.
fn sources() -> BTreeMap<Module, String> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, files) } else { files.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.retain(|file| !ONLY_FOR_TESTS.iter().any(|name| file.ends_with(name)));
    let module = |file: &PathBuf| {
        let path = file.strip_prefix(&root).unwrap().with_extension("");
        let mut module: Module = path.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|name| name == "mod") {
            module.pop();
        }
        module
    };
    files.iter().map(|file| (module(file), fs::read_to_string(file).unwrap())).collect()
}

/// The paths that a file's `use` lines name, from the crate's root on. `is_module` tells modules from items and from
/// other crates.
fn imports(own: &Module, text: &str, is_module: &dyn Fn(&[String]) -> bool) -> Vec<Module> {
    let mut paths = Vec::new();
    let mut lines = text.lines().peekable();
    let mut before = "";
    while let Some(line) = lines.next() {
        let mut rest = line.trim_start();
        if let Some(public) = rest.strip_prefix("pub(") {
            rest = public.split_once(") ").map_or(rest, |(_, rest)| rest);
        }
        let kept_out = ["#[cfg(doc)]", "#[cfg(test)]"].contains(&before.trim());
        // The tests stand at the end.
        if kept_out && rest.starts_with("mod ") && rest.ends_with('{') {
            break;
        }
        before = line;
        let Some(first) = rest.strip_prefix("pub ").unwrap_or(rest).strip_prefix("use ") else { continue };
        let mut statement = first.to_owned();
        while !statement.contains(';') {
            statement.push_str(lines.next().unwrap_or(";").trim());
        }
        if !kept_out {
            expand("", statement.split(';').next().unwrap_or_default(), &mut paths);
        }
    }
    paths.iter().filter_map(|path| resolve(own, &module(path), is_module)).collect()
}

/// `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, group)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap_or_default().trim();
        if !name.is_empty() {
            paths.push(format!("{prefix}{name}"));
        }
        return;
    };
    let group = group.strip_suffix('}').unwrap_or(group);
    let (mut depth, mut part) = (0, String::new());
    for c in group.chars().chain([',']) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            expand(&format!("{prefix}{head}"), &part, paths);
            part.clear();
        } else {
            part.push(c);
        }
    }
}

/// From the root on; `None` for what is another crate's.
fn resolve(own: &[String], path: &[String], is_module: &dyn Fn(&[String]) -> bool) -> Option<Module> {
    match path[0].as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some(own.iter().chain(&path[1..]).cloned().collect()),
        "super" => {
            let up = path.iter().take_while(|part| *part == "super").count();
            Some(own[..own.len() - up].iter().chain(&path[up..]).cloned().collect())
        }
        child => {
            let mut inner = own.to_vec();
            if own == ["main"] {
                inner.clear();
            }
            inner.push(child.to_owned());
            is_module(&inner).then(|| inner.iter().chain(&path[1..]).cloned().collect())
        }
    }
}

/// Which file imports from which others.
fn edges() -> BTreeMap<Module, BTreeSet<Module>> {
    let sources = sources();
    let is_module = |path: &[String]| sources.contains_key(path);
    let file_of =
        |path: &Module| (1..=path.len()).rev().map(|n| path[..n].to_vec()).find(|path| is_module(path));
    let from = |own: &Module, text: &str| {
        let mut to: BTreeSet<Module> = imports(own, text, &is_module).iter().filter_map(file_of).collect();
        to.remove(own);
        to
    };
    sources.iter().map(|(own, text)| (own.clone(), from(own, text))).collect()
}

fn shown(module: &Module) -> String {
    module.join("::")
}

#[test]
fn a_module_imports_only_from_layers_below_its_own() {
    let layer = |name: &str| {
        LAYERS.iter().position(|layer| layer.contains(&name)).unwrap_or_else(|| {
            panic!(
                "the module {name} is in no layer of LAYERS: add it here, and a line to docs/architecture.md"
            )
        })
    };
    let mut seen = 0;
    for (from, to) in edges() {
        for to in to.iter().filter(|to| to[0] != from[0]) {
            seen += 1;
            let below = layer(&from[0]) < layer(&to[0]);
            assert!(below, "{} imports from {}, which is not below it", shown(&from), shown(to));
        }
    }
    assert!(seen > 100, "only {seen} imports were found between modules: the reader of `use` lines is wrong");
}

/// A file may take from the module that it is a part of.
#[test]
fn no_files_import_each_other_in_a_circle() {
    let edges = edges();
    let next = |from: &Module| {
        let inward = |to: &&Module| !from.starts_with(to);
        edges[from].iter().filter(inward).cloned().collect::<Vec<_>>()
    };
    // Files that lead to no circle.
    let mut clear: BTreeSet<Module> = BTreeSet::new();
    for start in edges.keys() {
        let mut path = vec![(start.clone(), next(start))];
        while let Some((file, ahead)) = path.last_mut() {
            let Some(to) = ahead.pop() else {
                clear.insert(file.clone());
                path.pop();
                continue;
            };
            if let Some(at) = path.iter().position(|(file, _)| *file == to) {
                let circle: Vec<_> = path[at..].iter().map(|(file, _)| shown(file)).collect();
                panic!("a circle of imports: {} -> {}", circle.join(" -> "), shown(&to));
            }
            if !clear.contains(&to) {
                let ahead = next(&to);
                path.push((to, ahead));
            }
        }
    }
}

#[test]
fn use_lines_are_read() {
    let is_module =
        |path: &[String]| [vec!["a"], vec!["a", "b"], vec!["a", "c"]].iter().any(|known| known == path);
    let text = concat!(
        "#[cfg(test)]\nmod more;\nuse std::fmt;\nuse crate::x::{self, Y, z::{Z, W as V}};\npub(super) use super::q::Q;\n",
        "    use c::D;\n#[cfg(doc)]\nuse crate::doc::D;\nuse crate::{\n    one,\n    two,\n};\n",
        "#[cfg(test)]\nuse crate::t;\npub use b::B;\n#[cfg(test)]\nmod tests {\n    use crate::never;\n}\n",
    );
    let read: Vec<_> = imports(&module("a"), text, &is_module).iter().map(shown).collect();
    assert_eq!(read, ["x::self", "x::Y", "x::z::Z", "x::z::W", "q::Q", "a::c::D", "one", "two", "a::b::B"]);
}
