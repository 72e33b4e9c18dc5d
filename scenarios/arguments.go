package scenarios

import (
	"regexp"
	"slices"
)

// plainMachine is a type of machine with options that name no file.
var plainMachine = regexp.MustCompile(`\A[a-z0-9.-]+(,[a-z0-9-]+=(on|off|auto|split|[0-9]+))*\z`)

// guestArguments are the arguments of QEMU in a guest by which a file could be
// opened; nil for a guest like the built-in ones.
func OpenArguments(g Guest) (arguments []string) {
	for _, s := range Builtin() {
		if slices.Equal(s.Guest.QEMUArgs, g.QEMUArgs) && s.Guest.Machine == g.Machine {
			return nil
		}
	}
	if g.Command != "" {
		return nil
	}
	if !plainMachine.MatchString(g.Machine) {
		arguments = append(arguments, "-M", g.Machine)
	}
	return append(arguments, g.QEMUArgs...)
}
