//! Settings of the server: default < `deephold.toml` < `DEEPHOLD_*` < flags.
//!
//! The flags of `deephold serve` are the settings: names, types, defaults and help come from them, so no list of settings can lag
//! behind. A line of the file or a variable stands for a flag and is checked by that flag's own parser.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::builder::ArgAction;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, FromArgMatches};
use deephold_base::ErrorCode;
use serde_json::{Value, json};
use toml::de::{DeTable, DeValue};

use crate::cli::{ServeArgs, StateArgs, StoreArgs};
use crate::fail::{fail, invalid};
use crate::input::read_text_within;

const FILE_NAME: &str = "deephold.toml";
const PREFIX: &str = "DEEPHOLD_";
/// Bytes of a configuration file at most.
const FILE_MAX: u64 = 1 << 20;
/// A name is taken for a misspelt setting up to this distance (Damerau and Levenshtein's, adjacent swaps counted once).
const MISSPELT: usize = 2;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    /// Its line.
    File(usize),
    Variable(String),
    Flag,
}

/// A setting and its value; none where neither anybody nor a default gives one.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    arg: Arg,
    values: Vec<String>,
    origin: Origin,
}

/// All of them.
pub(crate) struct Settings {
    file: Option<PathBuf>,
    all: Vec<Setting>,
}

/// The file's values: by name, with their lines.
type FileValues = BTreeMap<String, (usize, Vec<String>)>;

fn command() -> clap::Command {
    ServeArgs::augment_args(clap::Command::new("serve")).no_binary_name(true).disable_help_flag(true)
}

/// The flags that are settings.
fn args() -> Vec<Arg> {
    command().get_arguments().filter(|a| a.get_id() != "config").cloned().collect()
}

fn variable_of(arg: &Arg) -> String {
    format!("{PREFIX}{}", arg.get_id().as_str().to_ascii_uppercase())
}

/// Environment variables are asked for by name: tests give others than the process has.
type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

fn of_process(name: &str) -> Option<String> {
    std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()).filter(|v| !v.is_empty())
}

/// The names of this process's variables.
fn process_names() -> impl Iterator<Item = String> {
    std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned())
}

/// A setting's default; none where nothing stands for it.
fn default_of(arg: &Arg) -> Vec<String> {
    if is_switch(arg) {
        return vec!["false".to_owned()];
    }
    arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect()
}

impl Settings {
    /// What holds without flags.
    pub(crate) fn read(config: Option<&Path>) -> Result<Self> {
        Self::resolve(config, None, &of_process, process_names())
    }

    fn resolve(
        config: Option<&Path>,
        flags: Option<&ArgMatches>,
        variable: &Variables<'_>,
        names: impl Iterator<Item = String>,
    ) -> Result<Self> {
        let file = find_file(config, variable)?;
        let mut lines = file.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let shown = file.as_deref().map(file_name).unwrap_or_default();
        check_variables(names)?;
        let mut all = Vec::new();
        for arg in args() {
            let id = arg.get_id().as_str().to_owned();
            let in_file = lines.remove(&id);
            let name = variable_of(&arg);
            let is_flag = |m: &&ArgMatches| m.value_source(&id) == Some(ValueSource::CommandLine);
            let (values, origin) = if let Some(matches) = flags.filter(is_flag) {
                let raw = matches.get_raw(&id).into_iter().flatten();
                let given: Vec<String> = raw.map(|v| v.to_string_lossy().into_owned()).collect();
                (if given.is_empty() { vec!["true".to_owned()] } else { given }, Origin::Flag)
            } else if let Some(value) = variable(&name) {
                let values = match is_list(&arg) {
                    true => value.split(',').map(|v| v.trim().to_owned()).collect(),
                    false => vec![value],
                };
                (values, Origin::Variable(name))
            } else if let Some((line, values)) = in_file {
                (values, Origin::File(line))
            } else {
                (default_of(&arg), Origin::Default)
            };
            let setting = Setting { arg, values, origin };
            setting.check().map_err(|problem| {
                let place = match &setting.origin {
                    Origin::File(line) => format!("{shown} line {line}: "),
                    Origin::Variable(name) => format!("{name}: "),
                    Origin::Flag | Origin::Default => String::new(),
                };
                invalid(format!("{place}`{id}` {problem}"))
            })?;
            all.push(setting);
        }
        if let Some((name, (line, _))) = lines.first_key_value() {
            return Err(invalid(format!(
                "{shown} line {line}: there is no setting `{name}`{}",
                nearest(name)
            )));
        }
        Ok(Self { file, all })
    }

    /// The file that was read.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What the flags of `serve` would be.
    fn args(&self) -> Result<ServeArgs> {
        let given = self.all.iter().filter(|s| s.origin != Origin::Default);
        let (positional, named): (Vec<&Setting>, Vec<&Setting>) = given.partition(|s| s.arg.is_positional());
        let mut line: Vec<String> = named.iter().flat_map(|s| s.as_flags()).collect();
        line.push("--".to_owned());
        line.extend(positional.iter().flat_map(|s| s.values.clone()));
        let parsed = command().try_get_matches_from(line).and_then(|m| ServeArgs::from_arg_matches(&m));
        parsed.map_err(|e| invalid(first_line(&e)))
    }

    /// One value.
    fn value(&self, id: &str) -> Option<&str> {
        self.all.iter().find(|s| s.arg.get_id() == id)?.values.first().map(String::as_str)
    }

    /// Every setting that is not a default, for the audit log.
    pub(crate) fn to_json(&self) -> Value {
        let given = self.all.iter().filter(|s| s.origin != Origin::Default);
        given
            .map(|s| (s.arg.get_id().to_string(), json!({ "value": s.json(), "origin": s.origin_name() })))
            .collect()
    }

    /// As a file that would give the same.
    pub(crate) fn to_toml(&self, with_origin: bool) -> String {
        let mut out = String::new();
        for s in &self.all {
            let id = s.arg.get_id();
            let line = if s.values.is_empty() && !is_list(&s.arg) {
                format!("# {id} is not set")
            } else {
                format!("{id} = {}", s.toml())
            };
            match with_origin {
                true => out += &format!("{line:<50} # {}\n", self.place(s)),
                false => out += &format!("{line}\n"),
            }
        }
        out
    }

    fn place(&self, setting: &Setting) -> String {
        match (&setting.origin, &self.file) {
            (Origin::File(line), Some(file)) => format!("{} line {line}", file.display()),
            _ => setting.origin_name(),
        }
    }
}

impl Setting {
    fn check(&self) -> Result<(), String> {
        if self.origin == Origin::Default {
            return Ok(());
        }
        if !is_list(&self.arg) && self.values.len() != 1 {
            return Err("takes one value, not a list".to_owned());
        }
        if is_switch(&self.arg) && !["true", "false"].contains(&self.values[0].as_str()) {
            return Err(format!("= {} must be true or false", self.values[0]));
        }
        let mut line = self.as_flags();
        if self.arg.is_positional() {
            line = [vec!["--".to_owned()], self.values.clone()].concat();
        }
        command().try_get_matches_from(line).map(drop).map_err(|e| {
            // What stands before the reason names the flag again.
            let text = first_line(&e);
            text.split_once("': ")
                .map_or(text.clone(), |(_, why)| format!("= {}: {why}", self.values.join(", ")))
        })
    }

    fn as_flags(&self) -> Vec<String> {
        let long = self.arg.get_long().unwrap_or_default();
        match is_switch(&self.arg) {
            true if self.values[0] == "true" => vec![format!("--{long}")],
            true => Vec::new(),
            false => self.values.iter().map(|v| format!("--{long}={v}")).collect(),
        }
    }

    fn json(&self) -> Value {
        let one = |v: &String| match v.parse::<i64>() {
            Ok(number) => json!(number),
            Err(_) if is_switch(&self.arg) => json!(v == "true"),
            Err(_) => json!(v),
        };
        if is_list(&self.arg) {
            self.values.iter().map(one).collect()
        } else {
            self.values.first().map_or(Value::Null, one)
        }
    }

    /// JSON's numbers, strings and lists are TOML's as well, but for one character that TOML wants escaped.
    fn toml(&self) -> String {
        self.json().to_string().replace('\u{7f}', "\\u007f")
    }

    fn origin_name(&self) -> String {
        match &self.origin {
            Origin::Default => "default".to_owned(),
            Origin::File(line) => format!("file line {line}"),
            Origin::Variable(name) => name.clone(),
            Origin::Flag => "flag".to_owned(),
        }
    }
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    text.trim_start_matches("error: ").to_owned()
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// The file that is named, or the first that is there.
fn find_file(config: Option<&Path>, variable: &Variables<'_>) -> Result<Option<PathBuf>> {
    let named = config.map(Path::to_owned).or_else(|| variable("DEEPHOLD_CONFIG").map(PathBuf::from));
    if let Some(path) = named {
        if !path.is_file() {
            return Err(fail(
                ErrorCode::NotFound,
                format!("there is no configuration file {}", path.display()),
            ));
        }
        return Ok(Some(path));
    }
    let home = variable("XDG_CONFIG_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = home.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".config")));
    let places = [Some(PathBuf::from(FILE_NAME)), home.map(|h| h.join("deephold").join(FILE_NAME))];
    Ok(places.into_iter().flatten().find(|p| p.is_file()))
}

fn read_file(path: &Path) -> Result<FileValues> {
    let name = file_name(path);
    let text = read_text_within(path, FILE_MAX)?;
    parse_file(&text).map_err(|(line, problem)| invalid(format!("{name} line {line}: {problem}")))
}

fn parse_file(text: &str) -> Result<FileValues, (usize, String)> {
    let line_of =
        |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|e| {
        let line = line_of(e.span().map_or(0, |s| s.start));
        (line, e.message().to_owned())
    })?;
    let mut out = FileValues::new();
    for (key, value) in table.get_ref() {
        let (name, line) = (key.get_ref().to_string(), line_of(key.span().start));
        let wrong = |what: &str| (line, format!("`{name}` {what}{}", nearest(&name)));
        let values = match value.get_ref() {
            DeValue::Array(list) => {
                let values = list.iter().map(|v| scalar(v.get_ref())).collect::<Option<Vec<_>>>();
                values.ok_or_else(|| wrong("must hold texts or numbers"))?
            }
            DeValue::Table(_) => {
                return Err(wrong("is a table; settings stand by themselves, as `name = value`"));
            }
            one => vec![scalar(one).ok_or_else(|| wrong("must be a text, a number, true or false"))?],
        };
        out.insert(name, (line, values));
    }
    Ok(out)
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// `; did you mean …` where a setting is called nearly so.
fn nearest(name: &str) -> String {
    let ids = args();
    let best = ids
        .iter()
        .map(|a| (strsim::jaro_winkler(name, a.get_id().as_str()), a.get_id().as_str()))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((likeness, id)) if likeness > 0.7 && id != name => format!("; did you mean `{id}`?"),
        _ => String::new(),
    }
}

/// Refuses variables that are nearly settings. Others may be anybody's.
fn check_variables(names: impl Iterator<Item = String>) -> Result<()> {
    let known: Vec<String> = args().iter().map(variable_of).chain(["DEEPHOLD_CONFIG".to_owned()]).collect();
    for name in names.filter(|n| n.starts_with(PREFIX) && !known.contains(n)) {
        if let Some(near) = known.iter().find(|k| strsim::osa_distance(k, &name) <= MISSPELT) {
            return Err(invalid(format!("there is no setting {name}; did you mean {near}?")));
        }
    }
    Ok(())
}

/// The arguments of `deephold serve` over everything else, and where each comes from.
pub(crate) fn serve(matches: &ArgMatches) -> Result<(ServeArgs, Settings)> {
    let config = matches.get_one::<PathBuf>("config").map(PathBuf::as_path);
    let settings = Settings::resolve(config, Some(matches), &of_process, process_names())?;
    let mut args = settings.args()?;
    // Whoever asks for the state folder looks into the same file.
    args.state.config = config.map(Path::to_owned);
    Ok((args, settings))
}

/// The state folder that the file or the environment names.
pub(crate) fn state(args: &StateArgs) -> Result<Option<PathBuf>> {
    Ok(Settings::read(args.config.as_deref())?.value("state").map(PathBuf::from))
}

/// Where the file or the environment says that keys and usage lie.
pub(crate) fn store(args: &StateArgs) -> Result<StoreArgs> {
    let settings = Settings::read(args.config.as_deref())?;
    let path = |id| settings.value(id).map(PathBuf::from);
    Ok(StoreArgs {
        store: settings.value("store").map(str::to_owned),
        store_password_file: path("store_password_file"),
        store_ca: path("store_ca"),
    })
}

/// Every setting with its default, its variable and what it does, as a file whose lines are to be uncommented.
pub(crate) fn reference() -> String {
    let mut out = format!(
        "# {FILE_NAME}: settings of `deephold serve`, as their defaults are. A variable goes before a line of this file, a flag before both.\n\
         # Read from --config FILE, else DEEPHOLD_CONFIG, else the current folder, else deephold/ in the user's configuration folder.\n"
    );
    for arg in args() {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        out += &format!("\n# {help}\n# {}", variable_of(&arg));
        let names: Vec<String> = match is_switch(&arg) {
            true => vec!["true".into(), "false".into()],
            false => arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect(),
        };
        if !names.is_empty() {
            out += &format!(": {}", names.join(", "));
        } else if is_list(&arg) {
            out += ": a list; in the variable with commas";
        }
        let id = arg.get_id().to_string();
        let setting = Setting { values: default_of(&arg), origin: Origin::Default, arg };
        let value = if setting.values.is_empty() && !is_list(&setting.arg) {
            "\"\"".to_owned()
        } else {
            setting.toml()
        };
        out += &format!("\n# {id} = {value}\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str, variables: &[(&str, &str)], flags: &[&str]) -> Result<(ServeArgs, Settings)> {
        let dir = deephold_testkit::TempDir::new("config");
        let file = dir.join(FILE_NAME);
        std::fs::write(&file, text)?;
        let matches = command().try_get_matches_from(flags)?;
        let variable = |name: &str| variables.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        let names = variables.iter().map(|(k, _)| (*k).to_owned());
        let settings = Settings::resolve(Some(&file), Some(&matches), &variable, names)?;
        Ok((settings.args()?, settings))
    }

    #[test]
    fn each_place_goes_before_the_last() {
        let file = "max_seqs = 7\nbind = \"127.0.0.1:1\"\ncontext = 100\ntls = true\nmodels = [\"a=x\", \"b=y\"]\ncache_memory = \"1GiB\"\n";
        let variables =
            [("DEEPHOLD_BIND", "127.0.0.1:2"), ("DEEPHOLD_CONTEXT", "200"), ("DEEPHOLD_TLS_NAMES", "p, q")];
        let (args, settings) =
            resolve(file, &variables, &["--context", "300", "--", "-odd-"]).expect("settings");
        assert_eq!((args.max_seqs, args.bind.port(), args.engine.context), (7, 2, Some(300)));
        assert!(args.tls && !args.insecure_http);
        assert_eq!(
            (args.models, args.tls_names),
            (vec!["-odd-".to_owned()], vec!["p".to_owned(), "q".to_owned()])
        );
        assert_eq!(args.engine.cache_memory, Some(1 << 30));
        let toml = settings.to_toml(true);
        let origin = |id: &str| {
            let line = toml.lines().find(|l| l.starts_with(&format!("{id} "))).expect("a line");
            line.rsplit("# ").next().expect("an origin").to_owned()
        };
        assert!(origin("max_seqs").ends_with("deephold.toml line 1"));
        assert_eq!(origin("bind"), "DEEPHOLD_BIND");
        assert_eq!((origin("context"), origin("threads")), ("flag".into(), "default".into()));
        // What is shown is a file that gives the same.
        let (again, _) = resolve(&settings.to_toml(false), &[], &[]).expect("settings");
        assert_eq!((again.max_seqs, again.engine.context, again.tls), (7, Some(300), true));
        assert_eq!(again.models, ["-odd-"]);
        assert_eq!(
            settings.to_json()["tls_names"],
            json!({ "value": ["p", "q"], "origin": "DEEPHOLD_TLS_NAMES" })
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (file, variables, words) in [
            ("\nmax_seq = 7", &[][..], &["line 2", "max_seq", "did you mean `max_seqs`"][..]),
            ("max_seqs = \"many\"", &[], &["line 1", "`max_seqs` = many", "invalid digit"]),
            ("tls = \"yes\"", &[], &["`tls` = yes must be true or false"]),
            ("audit_policy = \"none\"", &[], &["audit_policy", "none"]),
            ("bind = [\"127.0.0.1:1\"]\nbind = 2", &[], &["line 2", "duplicate"]),
            ("bind = [\"127.0.0.1:1\", \"127.0.0.1:2\"]", &[], &["takes one value"]),
            ("[server]\nbind = \"127.0.0.1:1\"", &[], &["line 1", "`server` is a table"]),
            ("models = [[1]]", &[], &["`models` must hold texts"]),
            ("bind = 1979-05-27", &[], &["must be a text"]),
            ("bind = ", &[], &["line 1"]),
            ("", &[("DEEPHOLD_BNID", "x")], &["DEEPHOLD_BNID", "DEEPHOLD_BIND"]),
            ("", &[("DEEPHOLD_CONTEXT", "x")], &["DEEPHOLD_CONTEXT: `context` = x"]),
            ("tls = true\ninsecure_http = true", &[], &["--tls", "--insecure-http"]),
        ] {
            let error =
                resolve(file, variables, &[]).err().unwrap_or_else(|| panic!("{file} was taken")).to_string();
            for word in words {
                assert!(error.contains(word), "{file} {variables:?}: {error}");
            }
        }
        // What belongs to somebody else is nobody's mistake.
        assert!(
            resolve("", &[("DEEPHOLD_TEST_MODELS", "x"), ("DEEPHOLD_KEY", "y"), ("PATH", "z")], &[]).is_ok()
        );
    }

    #[test]
    fn the_reference_holds_every_default() {
        let lines: Vec<String> = reference()
            .lines()
            .filter_map(|l| l.strip_prefix("# "))
            .filter(|l| l.contains(" = ") && !l.ends_with("= \"\""))
            .map(str::to_owned)
            .collect();
        assert!(lines.len() > 10);
        let (args, _) = resolve(&lines.join("\n"), &[], &[]).expect("the defaults are valid");
        let defaults = ServeArgs::from_arg_matches(&command().get_matches_from([""; 0])).expect("defaults");
        assert_eq!(
            (args.bind, args.max_seqs, args.models),
            (defaults.bind, defaults.max_seqs, defaults.models)
        );
    }
}
