//! The Dockerfile language: from bytes to typed instructions, with the place of each.

pub(super) mod mode;
