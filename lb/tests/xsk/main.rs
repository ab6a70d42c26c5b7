//! The AF_XDP workers on real veth pairs, with a program that redirects and a handler that does as the frame says.

mod bed;
mod frames;
mod kernel;
mod lives;
mod load;
