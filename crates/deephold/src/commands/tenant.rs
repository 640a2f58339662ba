//! `deephold tenant`.

use std::process::ExitCode;

use anyhow::Result;
use deephold_server::admin::{AdminAnswer, AdminRequest};
use serde_json::json;

use super::{another_question, ask, limit_words, print_json};
use crate::cli::{TenantCommand, TenantSetArgs};
use crate::console::{out, plain};
use crate::fail::invalid;

pub(crate) fn run(command: &TenantCommand) -> Result<ExitCode> {
    match command {
        TenantCommand::Set(args) => set(args),
        TenantCommand::List(args) => match ask(&args.state, &AdminRequest::ListTenants)? {
            AdminAnswer::Tenants { tenants, projects } if args.json => {
                print_json(&json!({ "tenants": tenants, "projects": projects })).map(|()| ExitCode::SUCCESS)
            }
            AdminAnswer::Tenants { tenants, projects } => {
                for tenant in &tenants {
                    out!(
                        "{}  weight {}  {}",
                        plain(&tenant.name),
                        tenant.weight,
                        limit_words(&tenant.limits)
                    )?;
                    for project in projects.iter().filter(|p| p.tenant == tenant.name) {
                        out!("  project {}  {}", plain(&project.name), limit_words(&project.limits))?;
                    }
                }
                Ok(ExitCode::SUCCESS)
            }
            AdminAnswer::Refused(why) => Err(invalid(why)),
            _ => Err(another_question()),
        },
    }
}

fn set(args: &TenantSetArgs) -> Result<ExitCode> {
    let limits = args.limits.changes();
    let request = match &args.project {
        Some(project) => {
            AdminRequest::SetProject { tenant: args.name.clone(), name: project.clone(), limits }
        }
        None => AdminRequest::SetTenant { name: args.name.clone(), weight: args.weight, limits },
    };
    match ask(&args.state, &request)? {
        AdminAnswer::Changed if args.json => print_json(&json!({ "changed": true }))?,
        AdminAnswer::Changed => out!("set; it holds for requests from now on")?,
        AdminAnswer::Refused(why) => return Err(invalid(why)),
        _ => return Err(another_question()),
    }
    Ok(ExitCode::SUCCESS)
}
