package layers

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas"
)

// A mapTree is a Tree of files in memory.
type mapTree struct{ fstest.MapFS }

func (t mapTree) Lstat(name string) (fs.FileInfo, error) { return t.MapFS.Lstat(name) }
func (t mapTree) ReadLink(name string) (string, error)   { return t.MapFS.ReadLink(name) }
func (t mapTree) Xattrs(name string) (map[string]string, error) {
	if name == "Users" {
		return map[string]string{securityXattr: "its own"}, nil
	}
	return nil, nil
}

var copyTime = time.Unix(1_700_000_000, 123)

func windowsSource() fstest.MapFS {
	return fstest.MapFS{
		"f":        {Data: []byte("file\n"), ModTime: copyTime, Mode: 0o755},
		"d":        {Mode: fs.ModeDir | 0o700, ModTime: copyTime},
		"d/g":      {Data: []byte("inner\n"), ModTime: copyTime},
		"d/tofile": {Data: []byte("g"), Mode: fs.ModeSymlink, ModTime: copyTime},
		"d/todir":  {Data: []byte("../d"), Mode: fs.ModeSymlink, ModTime: copyTime},
	}
}

// winItems describes sources as the build loop does.
func winItems(t *testing.T, from fstest.MapFS, names ...string) (list []Item) {
	t.Helper()
	for _, name := range names {
		info, err := from.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		it := Item{Src: name, Name: path.Base(name), Mode: info.Mode().Type()}
		switch {
		case info.IsDir():
			entries, err := from.ReadDir(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				it.Children = append(it.Children, winItems(t, from, path.Join(name, e.Name()))...)
			}
		case it.Mode == fs.ModeSymlink:
			it.Link = string(from[name].Data)
		default:
			it.Digest = digest.FromBytes(from[name].Data)
		}
		list = append(list, it)
	}
	return list
}

func windowsParent() mapTree {
	return mapTree{fstest.MapFS{
		"Users":      {Mode: fs.ModeDir | 0o777, ModTime: copyTime.Add(time.Hour)},
		"Users/file": {Data: []byte("old")},
		"link":       {Data: []byte(`C:\Users`), Mode: fs.ModeSymlink},
		"nt":         {Data: []byte(`\??\C:\Users\`), Mode: fs.ModeSymlink},
		"other":      {Data: []byte(`D:\`), Mode: fs.ModeSymlink},
		"loop":       {Data: []byte("loop"), Mode: fs.ModeSymlink},
	}}
}

func makeWindowsCopy(t *testing.T, c Copy) ([]*tar.Header, map[string]string, Layer, error) {
	t.Helper()
	st, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	l, err := MakeWindowsCopy(t.Context(), st, c, Compression{Algorithm: "none"})
	if err != nil {
		return nil, nil, l, err
	}
	f, err := st.Blob(l.Blob.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []*tar.Header
	files := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all, files, l, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all, files[h.Name] = append(all, h), string(b)
	}
}

func TestWindowsCopy(t *testing.T) {
	from := windowsSource()
	for _, test := range []struct {
		dst     string
		sources []string
		user    string
		want    []string // of names; or
		failure string
	}{
		{`C:/new/dir/`, []string{"f"}, "", []string{"Files/", "Files/new/", "Files/new/dir/", "Files/new/dir/f"}, ""},
		{`/new`, []string{"f"}, "", []string{"Files/", "Files/new"}, ""},
		{`C:/Users/`, []string{"f", "d"}, "ContainerUser", []string{"Files/", "Files/Users/", "Files/Users/d/", "Files/Users/d/g", "Files/Users/d/todir", "Files/Users/d/tofile", "Files/Users/f"}, ""},
		{`C:/link/`, []string{"f"}, "", []string{"Files/", "Files/Users/", "Files/Users/f"}, ""},
		{`C:/nt/`, []string{"f"}, "", []string{"Files/", "Files/Users/", "Files/Users/f"}, ""},
		{`C:/Users/file`, []string{"f"}, "", []string{"Files/", "Files/Users/", "Files/Users/file"}, ""},
		{`D:/x`, []string{"f"}, "", nil, "no other drive"},
		{`C:/other/`, []string{"f"}, "", nil, "no other drive"},
		{`C:/loop/`, []string{"f"}, "", nil, "too many links"},
		{`C:/Users`, []string{"f"}, "", nil, "is a directory"},
		{`C:/Users/file/`, []string{"f"}, "", nil, "is not a directory"},
	} {
		t.Run(strings.ReplaceAll(test.dst, "/", "_"), func(t *testing.T) {
			c := Copy{From: from, Parent: windowsParent(), Dst: test.dst, Items: winItems(t, from, test.sources...), User: test.user}
			all, files, l, err := makeWindowsCopy(t, c)
			if test.failure != "" {
				var bad *CopyError
				if !errors.As(err, &bad) || !strings.Contains(err.Error(), test.failure) {
					t.Errorf("got %v, want %q", err, test.failure)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, h := range all {
				names = append(names, h.Name)
				checkWindowsHeader(t, h, test.user)
			}
			if want := append([]string{"Hives/"}, test.want...); !slices.Equal(names, want) {
				t.Errorf("got %q, want %q", names, want)
			}
			for name, data := range files {
				if strings.HasSuffix(name, "/f") && data != "file\n" || strings.HasSuffix(name, "/g") && data != "inner\n" {
					t.Errorf("%s has %q", name, data)
				}
			}
			_, _, again, err := makeWindowsCopy(t, c)
			if err != nil || again.Blob.Digest != l.Blob.Digest {
				t.Errorf("the same copy gives %v, then %v, %v", l.Blob, again.Blob, err)
			}
		})
	}
}

func checkWindowsHeader(t *testing.T, h *tar.Header, user string) {
	t.Helper()
	if h.Name == "Hives/" {
		return
	}
	sd, err := base64.StdEncoding.DecodeString(h.PAXRecords[winSecurity])
	if err != nil || len(sd) == 0 {
		t.Errorf("%s: security descriptor %q, %v", h.Name, h.PAXRecords[winSecurity], err)
	}
	attributes, mtime := "32", time.Unix(copyTime.Unix(), 0)
	switch {
	case h.Name == "Files/Users/":
		attributes, mtime = "16", copyTime.Add(time.Hour)
		if string(sd) != "its own" {
			t.Errorf("an existing directory's security descriptor is %q", sd)
		}
	case h.Name == "Files/" || strings.HasPrefix(h.Name, "Files/new/") && h.Typeflag == tar.TypeDir:
		attributes, mtime = "16", h.ModTime
	case h.Typeflag == tar.TypeDir:
		attributes = "16"
	case strings.HasSuffix(h.Name, "tofile"):
		attributes = "1024"
	case strings.HasSuffix(h.Name, "todir"):
		attributes = "1040"
	}
	if h.PAXRecords[winAttributes] != attributes {
		t.Errorf("%s: attributes %s, want %s", h.Name, h.PAXRecords[winAttributes], attributes)
	}
	if !h.ModTime.Equal(mtime) {
		t.Errorf("%s: time %v, want %v", h.Name, h.ModTime, mtime)
	}
	if h.Name == "Files/Users/f" {
		const containerUser = "01030000000000055d0000000200000002000000" // S-1-5-93-2-2
		if got := strings.Contains(hex.EncodeToString(sd), containerUser); got != (user == "ContainerUser") {
			t.Errorf("%s: owned by ContainerUser: %v", h.Name, got)
		}
	}
}

func TestWindowsCopyOfWhatChanges(t *testing.T) {
	from := windowsSource()
	list := winItems(t, from, "f", "d")
	for name, change := range map[string]func(fstest.MapFS){
		"content": func(m fstest.MapFS) { m["f"] = &fstest.MapFile{Data: []byte("FILE\n")} },
		"size":    func(m fstest.MapFS) { m["f"] = &fstest.MapFile{Data: []byte("f")} },
		"gone":    func(m fstest.MapFS) { delete(m, "f") },
		"link":    func(m fstest.MapFS) { m["d/todir"] = &fstest.MapFile{Data: []byte("f"), Mode: fs.ModeSymlink} },
		"type":    func(m fstest.MapFS) { m["f"] = &fstest.MapFile{Mode: fs.ModeDir} },
	} {
		now := windowsSource()
		change(now)
		_, _, _, err := makeWindowsCopy(t, Copy{From: now, Parent: windowsParent(), Dst: "C:/x/", Items: list})
		if err == nil || !strings.Contains(err.Error(), "changed while the build was running") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWindowsSecurity pins descriptors that were made by hand from [MS-DTYP] 2.4.6; under Windows another test compares them with what
// the system makes of SDDL.
func TestWindowsSecurity(t *testing.T) {
	got := fmt.Sprintf("%x", windowsSecurity("").ofFiles())
	const want = "01000480" + "14000000" + "24000000" + "00000000" + "30000000" + // header
		"01020000000000052000000020020000" + // owner: administrators
		"010100000000000512000000" + // group: system
		"0200" + "4c00" + "0300" + "0000" +
		"00001400" + "ff011f00" + "010100000000000512000000" +
		"00001800" + "ff011f00" + "01020000000000052000000020020000" +
		"00001800" + "a9001200" + "01020000000000052000000021020000"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What no file of Windows can be called is refused: there it would be another file. Names that differ in case are one.
func TestWindowsNames(t *testing.T) {
	for _, name := range []string{`..\..\x`, `a\b`, "f:stream", "dot.", "space ", "new\nline", "a*", "a?", "a|b", "a<b", `a"b`} {
		from := fstest.MapFS{"d/" + name: {Data: []byte("x"), ModTime: copyTime}}
		c := Copy{From: from, Parent: windowsParent(), Dst: "C:/Users/", Items: winItems(t, from, "d")}
		_, _, _, err := makeWindowsCopy(t, c)
		if bad := (*CopyError)(nil); !errors.As(err, &bad) || !strings.Contains(err.Error(), "no file of Windows") {
			t.Errorf("%q: got %v", name, err)
		}
	}
	from := fstest.MapFS{
		"x/n": {Data: []byte(`C:\Users`), Mode: fs.ModeSymlink, ModTime: copyTime},
		"y/N": {Mode: fs.ModeDir | 0o755, ModTime: copyTime}, "y/N/f": {Data: []byte("through it"), ModTime: copyTime},
	}
	all, _, _, err := makeWindowsCopy(t, Copy{From: from, Parent: windowsParent(), Dst: "C:/o/", Items: []Item{
		{Src: "x", Mode: fs.ModeDir, Children: winItems(t, from, "x/n")}, {Src: "y", Mode: fs.ModeDir, Children: winItems(t, from, "y/N")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range all {
		names = append(names, h.Name)
	}
	if want := []string{"Hives/", "Files/", "Files/Users/", "Files/Users/f", "Files/o/", "Files/o/n"}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}

// plantMap makes files in memory: a line is a letter for the type, a name, and for links a target after a tab.
func plantMap(text string) fstest.MapFS {
	m := fstest.MapFS{}
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) < 2 {
			continue
		}
		name, target, _ := strings.Cut(line[1:], "\t")
		if _, err := m.Lstat(name); err == nil || !fs.ValidPath(name) || name == "." {
			continue
		}
		fits := true // what is above it is a directory
		for up := path.Dir(name); up != "."; up = path.Dir(up) {
			fits = fits && (m[up] == nil || m[up].Mode.IsDir())
		}
		switch {
		case !fits:
		case line[0] == 'd':
			m[name] = &fstest.MapFile{Mode: fs.ModeDir | 0o755, ModTime: copyTime}
		case line[0] == 'f':
			m[name] = &fstest.MapFile{Data: []byte(name), Mode: 0o644, ModTime: copyTime}
		case line[0] == 'l':
			m[name] = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink, ModTime: copyTime}
		}
	}
	return m
}

// A linkless file system follows no link, as a Tree does not: MapFS follows one that leads to itself for ever.
type linkless struct{ fstest.MapFS }

func (l linkless) Stat(name string) (fs.FileInfo, error) {
	for up := name; up != "." && up != "/"; up = path.Dir(up) {
		if f := l.MapFS[up]; f != nil && f.Mode.Type() == fs.ModeSymlink {
			return nil, fs.ErrInvalid
		}
	}
	return l.MapFS.Stat(name)
}

// FuzzWindowsCopy holds that a layer for Windows has only files that lie below Files and can be there, each once and after its directory, with the
// content that they had.
func FuzzWindowsCopy(f *testing.F) {
	for _, seed := range [][3]string{
		{"dUsers\nllink\tC:\\Users\nlnt\t\\??\\C:\\Users\\", "ff\nda\nfa/b\nla/l\t..\\f", `C:\link\`},
		{"", "fa\nfA/b\nlB\tC:\\\ndb", "/x"}, {"lx\tD:\\", "ff", "c:/x/"}, {"lx\tX\nlX\tx", "ff", "/x/"},
		{"", `f..\x`, "/"}, {"", "ff:stream\nf.\nf..\nfx.", "/"}, {"la\t../../..\nlb\t\\\\server\\share", "ff", "/a/b/"},
		{"ff", "df\nff/x", "/"}, {"dd", "fD", "/d"}, {"", "ff", "x/../y"}, {"", "f.wh.x", "/"}, {"", "ff", `C:\a:b\`}, {"", "ff", "//"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, parent, source, dst string) {
		from := plantMap(source)
		c := Copy{From: linkless{from}, Parent: mapTree{plantMap(parent)}, Dst: dst}
		if strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, `\`) {
			entries, err := from.ReadDir(".")
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				c.Items = append(c.Items, winItems(t, from, e.Name())...)
			}
		} else {
			c.Items = winItems(t, from, ".")
			c.Items[0].Name = ""
		}
		var b bytes.Buffer
		err := c.useDriveC()
		var root *target
		if err == nil {
			root, err = planCopy(&c)
		}
		if err == nil {
			err = writeWindowsCopy(t.Context(), &b, &c, root)
		}
		if err != nil {
			return
		}
		seen := map[string]bool{"hives": true, "files": true}
		for r := tar.NewReader(&b); ; {
			h, err := r.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Name == "Hives/" || h.Name == "Files/" {
				continue
			}
			name := strings.TrimSuffix(h.Name, "/")
			folded := strings.ToLower(name)
			if seen[folded] || !seen[path.Dir(folded)] || !strings.HasPrefix(name, "Files/") || path.Clean(name) != name {
				t.Errorf("%q is in the layer, after %v", h.Name, seen)
			}
			seen[folded] = h.Typeflag == tar.TypeDir // nothing is below a file or a link
			// What is there already may have any name.
			old, err := c.Parent.Lstat(strings.TrimPrefix(name, "Files/"))
			if known := err == nil && old.IsDir() && h.Typeflag == tar.TypeDir; !known && strings.ContainsAny(path.Base(name), "\\:*?\"<>|\x00\n") {
				t.Errorf("%q is in the layer", h.Name)
			}
			if err == nil && old.IsDir() && h.Typeflag != tar.TypeDir || err == nil && old.Mode().Type() == fs.ModeSymlink && h.Typeflag == tar.TypeDir {
				t.Errorf("%q, a %q, is in the place of a %v", h.Name, h.Typeflag, old.Mode())
			}
			if h.Typeflag != tar.TypeReg {
				continue
			}
			content, err := io.ReadAll(r)
			if err != nil || !strings.EqualFold(path.Base(string(content)), path.Base(name)) && path.Base(name) != path.Base(dst) {
				t.Errorf("%q has %q, %v", h.Name, content, err)
			}
		}
	})
}
