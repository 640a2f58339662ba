//! Arguments of `deephold audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use deephold_kernels::Isa;

use super::StateArgs;

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Check every record, hash and signature
    Verify(AuditVerifyArgs),
    /// Show the newest records
    Show(AuditShowArgs),
    /// Write records to a file: as they are, or as a table for a spreadsheet
    Export(AuditExportArgs),
    /// Compute a recorded answer again and compare
    Replay(AuditReplayArgs),
}

#[derive(Args)]
pub(crate) struct AuditVerifyArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// A log's folder, wherever it was copied to
    #[arg(long, value_name = "FOLDER", requires = "public_key", conflicts_with = "state")]
    pub(crate) log: Option<PathBuf>,
    /// The public key that the auditor keeps
    #[arg(long, value_name = "FILE")]
    pub(crate) public_key: Option<PathBuf>,
    /// A record that must be in the log, as SEQ:HASH, noted at another time
    #[arg(long, value_name = "SEQ:HASH")]
    pub(crate) expect: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which log, and which of its records.
#[derive(Args)]
pub(crate) struct RecordArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// A log's folder, wherever it was copied to
    #[arg(long, value_name = "FOLDER", conflicts_with = "state")]
    pub(crate) log: Option<PathBuf>,
    /// Only of this kind: request, key, model, server, checkpoint, repair
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// Only of this tenant
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// Only of this project
    #[arg(long)]
    pub(crate) project: Option<String>,
    /// From this time on, in UTC: 2026-11-25, or 2026-11-25T08:30
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) since: Option<String>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) until: Option<String>,
}

#[derive(Args)]
pub(crate) struct AuditShowArgs {
    #[command(flatten)]
    pub(crate) records: RecordArgs,
    /// Records at most
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: usize,
}

#[derive(Args)]
pub(crate) struct AuditExportArgs {
    #[command(flatten)]
    pub(crate) records: RecordArgs,
    /// Lines as they stand in the log, or a table without prompts and answers
    #[arg(long, value_enum, default_value_t = ExportFormat::Jsonl)]
    pub(crate) format: ExportFormat,
    /// A new file to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    Jsonl,
    Csv,
}

/// The beginning of a time as records write it, at least a whole date.
fn parse_time(text: &str) -> Result<String, String> {
    let pattern = "0000-00-00T00:00:00.000Z";
    let fits = |(c, p): (char, char)| if p == '0' { c.is_ascii_digit() } else { c == p };
    let good = (10..=pattern.len()).contains(&text.len()) && text.chars().zip(pattern.chars()).all(fits);
    if good { Ok(text.to_owned()) } else { Err("write it as 2026-11-25 or 2026-11-25T08:30:00".to_owned()) }
}

#[derive(Args)]
pub(crate) struct AuditReplayArgs {
    /// The record: its number, or the request's id as the client got it
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// The model that answered: Hugging Face folder or .gguf file [default: the guide, where the guide answered]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// The request's body as it was sent, where the record keeps digests alone; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) request: Option<PathBuf>,
    /// Threads that compute [default: all that this process may use]
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,
    /// Instruction set [default: the record's, where this processor runs it]
    #[arg(long, value_name = "ISA")]
    pub(crate) isa: Option<Isa>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_a_date_and_what_follows() {
        for good in ["2026-11-25", "2026-11-25T08", "2026-11-25T08:30:00.123Z"] {
            assert!(parse_time(good).is_ok(), "{good}");
        }
        for bad in ["2026-11", "25.11.2026", "2026-11-25 08:30", "2026-11-25T08:30:00.123ZZ", "2026-11-2é"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
