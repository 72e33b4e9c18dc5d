package oops

import (
	"bytes"
	"regexp"
)

// message is what one print of the kernel's, or of a program's, has put into a
// line of the console.
type message struct {
	text    []byte // without the spaces around
	indent  int    // the spaces before it that are its own
	caller  string // the task or CPU that prints it, "T12" or "C0", where the kernel says so
	stamped bool   // with the kernel's timestamp
}

// Text returns a line of the console without what is not of its text:
// control bytes, escape sequences, timestamp, caller, surrounding spaces. A
// program's words in front of a timestamp are of its text.
func Text(line []byte) []byte {
	line = Clean(bytes.Clone(line))
	if n, _, _ := prefix(line); n == 0 {
		return bytes.TrimSpace(line)
	}
	var last []byte
	messages(line, func(m message) { last = m.text })
	return last
}

// messages cuts a clean line into its messages: the kernel does not wait for a
// program, or for another CPU, to end its line. A stamp begins each but the first.
func messages(line []byte, each func(message)) {
	n, caller, stamped := prefix(line)
	rest := line[n:]
	for {
		end := nextStamp(rest)
		text := rest[:end]
		indent := blanks(text)
		if n > 0 && indent > 0 {
			indent-- // the space behind a prefix
		}
		if text = bytes.TrimSpace(text); len(text) > 0 {
			each(message{text, indent, caller, stamped})
		}
		if rest = rest[end:]; len(rest) == 0 {
			return
		}
		n, caller, stamped = prefix(rest)
		rest = rest[n:]
	}
}

// nextStamp returns where the next timestamp of the kernel's begins in line, with
// the level in front of it if there is one, or the length of line.
func nextStamp(line []byte) int {
	for i := 0; ; {
		n := bytes.IndexByte(line[i:], ']')
		if n < 0 {
			return len(line)
		}
		i += n + 1
		if point := i - len(".123456]"); point < 0 || line[point] != '.' {
			continue
		}
		if at := stampBefore(line[:i]); at >= 0 {
			if level := len("<6>"); at >= level && line[at-1] == '>' && line[at-level] == '<' && digits(line[at-2:]) > 0 {
				at -= level
			}
			return at
		}
	}
}

// stampBefore returns where a timestamp, "[    1.234567]", that line ends in begins,
// or -1 (print_time in kernel/printk/printk.c: "[%5lu.%06lu]").
func stampBefore(line []byte) int {
	const micros = len(".123456]")
	point := len(line) - micros
	if point < len("[1") || line[point] != '.' || digits(line[point+1:]) != micros-2 {
		return -1
	}
	seconds := point
	for seconds > 0 && line[seconds-1] >= '0' && line[seconds-1] <= '9' {
		seconds--
	}
	open := seconds - 1
	for open >= 0 && line[open] == ' ' {
		open--
	}
	if seconds == point || open < 0 || line[open] != '[' {
		return -1
	}
	return open
}

// prefix returns how long the prefixes are that a clean line begins with, those
// of the kernel's, of loggers and of mail in any order; the caller if the kernel
// names it, and whether there is a timestamp of the kernel's. A space behind the
// last prefix is of the text.
func prefix(line []byte) (length int, caller string, stamped bool) {
	dated := false // the line has a date, so a host may come
	for {
		spaces := blanks(line[length:])
		rest := line[length+spaces:]
		if len(rest) == 0 {
			return length, caller, stamped
		}
		n := 0
		switch first := rest[0]; {
		case first == '[':
			close := bytes.IndexByte(rest, ']') + 1
			if close == 0 {
				break
			}
			in := rest[1+blanks(rest[1:]) : close-1]
			switch {
			case stampBefore(rest[:close]) == 0 || bytes.IndexByte(in, '.') > 0 && sinceStart.Match(rest[:close]):
				n, stamped = close, true
			case len(in) > 1 && (in[0] == 'T' || in[0] == 'C') && digits(in[1:]) == len(in)-1:
				n, caller = close, string(in)
			case bytes.IndexByte(in, ':') < 0:
			case stamped && ofVendor.Match(rest):
				n = len(ofVendor.Find(rest))
			case byDmesg.Match(rest[:close]):
				n, stamped = close, true
			case dateInBrackets.Match(rest[:close]):
				n, dated = close, true
			}
		case first == '<':
			if d := digits(rest[1:]); 0 < d && d <= 3 && 1+d < len(rest) && rest[1+d] == '>' {
				n = d + 2
			}
		case first == '>': // a quotation in a mail
			n = 1
		case first == '(' && stamped:
			n = len(ofVendor.Find(rest))
		case dated && !stamped:
			n, dated = len(ofHost.Find(rest)), false
			fallthrough
		default:
			if n == 0 && beginsLog(rest) {
				n = len(ofLogger.Find(rest))
				dated = n > 0
			}
		}
		if n == 0 {
			return length, caller, stamped
		}
		length += spaces + n
	}
}

const (
	clock  = `\d\d:\d\d:\d\d(?:[.,]\d+)?`
	iso    = `\d{4}-\d\d-\d\d[T ]` + clock + `(?:Z|[+-]\d\d:?\d\d)?`
	day    = `(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)`
	month  = `(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)`
	date   = month + ` +\d{1,2},? (?:\d{4},? )?` + clock + `(?: \d{4})?`
	inText = `(?:` + day + `,? )?` + date
)

var (
	// What dmesg writes in place of the timestamp: -T, "[Tue Apr 15 13:58:08 2025]";
	// -H, "[Apr15 13:58]" and "[  +0.000003]"; -d adds the time since the last line.
	byDmesg    = regexp.MustCompile(`^\[` + day + ` ` + date + `\]|^\[` + month + ` ?\d{1,2} \d\d:\d\d\]`)
	sinceStart = regexp.MustCompile(`^\[ *(?:\+\d+\.\d{6}|\d+\.\d{6} <[ +]*\d+\.\d{6}>)\]`)

	dateInBrackets = regexp.MustCompile(`^\[(?:` + iso + `|` + clock + `|` + inText + `|` + month + ` ?\d{1,2} \d\d:\d\d)\]`)

	// The CPU and the task, as Android's vendors have the kernel print them.
	ofVendor = regexp.MustCompile(`^(?:\[\d+: *[^\]:]+(?::[^\]:]+)?: *\d+\]|\(\d+\)\[\d+:[^\]]+\])`)

	// Journals, syslog, loggers of serial lines, CI systems; dmesg -x; netconsole.
	ofLogger = regexp.MustCompile(`^(?:(?:` + iso + `|` + clock + `|` + inText + `):?(?: |$)|kernel:(?: |$)|(?:kern|user|daemon|syslog) *: ?[a-z]+ *:(?: |$)|` +
		`kern\.[a-z]+ |\d+,\d+,\d+,[^ ;]*;)`)
	ofHost = regexp.MustCompile(`^(?:[\w.:-]+ )?(?:kern\.[a-z]+ )?kernel(?:\[\d+\])?:(?: |$)`)
)

// beginsLog is a quick test for what ofLogger matches.
func beginsLog(line []byte) bool {
	if len(line) < len("kern:") {
		return false
	}
	if d := digits(line); d > 0 {
		return d < len(line) && (line[d] == ':' || line[d] == '-' || line[d] == ',')
	}
	switch string(line[:3]) {
	case "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun":
		return line[3] == ' ' || line[3] == ','
	case "ker", "use", "dae", "sys": // kern, kernel, user, daemon, syslog
		return true
	}
	return false
}

// digits returns with how many decimal digits s begins.
func digits(s []byte) int {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return n
}

// blanks returns with how many spaces s begins.
func blanks(s []byte) int {
	n := 0
	for n < len(s) && s[n] == ' ' {
		n++
	}
	return n
}
