"""Every private touch of other libraries, one file each; a test holds what each relies on."""
