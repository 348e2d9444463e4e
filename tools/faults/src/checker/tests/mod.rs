//! The checker must pass every right history, and find every wrong one by the rule that it breaks.

mod classic;
mod garbage;
mod mutations;
mod right;
mod script;
mod simulate;
mod wrong_stores;
