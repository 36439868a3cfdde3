//! Times as the JetStream API prints them.
