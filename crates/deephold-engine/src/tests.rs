//! The pure parts against naive models and seeded simulation; the whole engine with real models.

mod handle;
mod load;
mod machine;
mod policy;
mod pool;
mod real;
mod sampling;
mod sharing;
mod simulation;
mod timed;
