//! The checker must pass what is right, and catch what is wrong by the rule that it breaks.

mod classic;
mod garbage;
mod mutations;
mod right;
mod script;
mod simulate;
mod wrong_stores;
