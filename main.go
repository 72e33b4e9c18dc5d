// Command unlucky hunts for kernel crashes that depend on where the linker
// happened to put things: it links a kernel with many layouts, boots each in
// QEMU, and saves the seeds of those that crash.
package main

import (
	"os"

	"unlucky/cli"
)

func main() { os.Exit(cli.Main()) }
