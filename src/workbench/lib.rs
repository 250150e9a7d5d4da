//! The Luthier workbench: command line and terminal interface.
