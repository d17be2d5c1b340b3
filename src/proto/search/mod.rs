//! Search: planning, comparing, merging, retrying. Pure.
