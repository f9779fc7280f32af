//! Numbers about a program.
