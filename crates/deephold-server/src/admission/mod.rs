//! Whether a request may be answered, and what follows from it: limits are held against a ledger, usage is written before an answer's
//! end, the audit record and the metrics come from one place.

mod books;
mod ledger;
mod permit;
mod prices;
mod rates;

pub(crate) use books::Books;
pub(crate) use ledger::{Bound, Unit};
pub(crate) use permit::{Outcome, Permit, recordable, unrecordable};
pub use prices::Prices;
pub(crate) use prices::amount_text;
pub(crate) use rates::Rates;
