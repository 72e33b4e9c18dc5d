package cli

import buildinfo "runtime/debug"

// programVersion is that of this program: a tag, or the time and the commit that it was
// built from, as Go writes them; "(devel)" where Go was told nothing of that.
func programVersion() string {
	if info, ok := buildinfo.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
