//! `deephold state`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use deephold_audit::create_private_file;
use deephold_server::admin::{AdminAnswer, AdminRequest};
use deephold_state::{Archive, Contents, Record, read_backup};
use serde_json::json;

use super::{another_question, ask, counted, needs_state, print_json};
use crate::cli::StateCommand;
use crate::config;
use crate::console::{note, out, plain};
use crate::fail::invalid;
use crate::state_dir::StateDir;

pub(crate) fn run(command: &StateCommand) -> Result<ExitCode> {
    match command {
        StateCommand::Backup(args) => {
            // A backup of another time is not to be lost.
            let cannot = || format!("cannot write {}", args.file.display());
            let mut file = create_private_file(&args.file).with_context(cannot)?;
            // A running server writes in its own folder alone; from there it is ours to carry.
            let own = StateDir::of(&args.state)?.path().join(format!("backup-{}.tmp", std::process::id()));
            let path = std::path::absolute(&own)?;
            let contents = match ask(&args.state, &AdminRequest::BackUp { path }) {
                Ok(AdminAnswer::BackedUp(contents)) => contents,
                other => {
                    std::fs::remove_file(&args.file)?;
                    return Err(match other {
                        Ok(AdminAnswer::Refused(why)) => invalid(why),
                        Ok(_) => another_question(),
                        Err(e) => e,
                    });
                }
            };
            let carried = File::open(&own)
                .and_then(|mut from| std::io::copy(&mut from, &mut file))
                .and_then(|_| file.sync_all());
            std::fs::remove_file(&own)?;
            carried.with_context(cannot)?;
            if !args.json {
                note!("keep the folder's keys/ and audit/ beside it: they are no part of the backup");
            }
            report("backed_up", "backed up", contents, args.json)
        }
        StateCommand::Restore(args) => {
            let (records, contents) = read(&args.file)?;
            let state = StateDir::of(&args.state)?.with_store(&config::store(&args.state)?);
            let (store, log) = state.open()?;
            store.import(&records)?;
            log.append("state", &json!({ "event": "restored", "contents": contents }))?;
            report("restored", "restored", contents, args.json)
        }
        StateCommand::Check(args) => {
            let found = match &args.backup {
                Some(file) => read(file).map(|_| Vec::new())?,
                None => {
                    let state = StateDir::of(&args.state)?.with_store(&config::store(&args.state)?);
                    needs_state(&state)?;
                    state.store()?.check()?
                }
            };
            if args.json {
                print_json(&json!({ "ok": found.is_empty(), "found": found }))?;
            } else if found.is_empty() {
                out!("nothing is wrong")?;
            } else {
                found.iter().try_for_each(|line| out!("{}", plain(line)))?;
            }
            Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn read(file: &Path) -> Result<(Vec<Record>, Contents)> {
    let shown = || format!("the backup {}", file.display());
    let input = File::open(file).with_context(shown)?;
    read_backup(&mut BufReader::new(input)).with_context(shown)
}

fn report(name: &str, words: &str, contents: Contents, json: bool) -> Result<ExitCode> {
    if json {
        print_json(&json!({ name: contents }))?;
    } else {
        let Contents { tenants, projects, keys, usage_rows, .. } = contents;
        let of_each = [(tenants, "tenant"), (projects, "project"), (keys, "key"), (usage_rows, "row")];
        out!("{words}: {} of usage", of_each.map(|(number, one)| counted(number, one)).join(", "))?;
    }
    Ok(ExitCode::SUCCESS)
}
