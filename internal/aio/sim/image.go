package sim

// Image is what the files of one directory held durably at some moment.
type Image struct {
	dir   string
	files map[string]imaged
}

type imaged struct {
	size  int64
	pages table
}

// Image copies what is durable of the files in a directory; nil if there is none of that name.
func (d *Disk) Image(dir string) *Image {
	at := d.find(dir)
	if at == nil || !at.dir {
		return nil
	}
	im := &Image{dir: dir, files: make(map[string]imaged)}
	for _, name := range sortedNames(at.ents) {
		f := at.ents[name]
		if f.dir {
			continue
		}
		x := imaged{size: f.safeSize}
		for i := range f.safe.pages() {
			if p := f.safe.get(i); p != nil {
				d.w.set(&x.pages, i, p.hold())
			}
		}
		im.files[name] = x
	}
	return im
}

// Restore makes the files what they were when the image was made, as somebody does who puts an old copy of a disk
// into a machine. The machine must be off.
func (d *Disk) Restore(im *Image) {
	at := d.find(im.dir)
	if d.node.on || at == nil {
		panic("sim: an image is restored to a machine that runs, or that lacks its directory")
	}
	for _, name := range sortedNames(at.ents) {
		f := at.ents[name]
		x, ok := im.files[name]
		if !ok || f.dir {
			continue
		}
		for i := range max(f.safe.pages(), f.cur.pages(), x.pages.pages()) {
			d.w.set(&f.safe, i, x.pages.get(i).hold())
			d.w.set(&f.cur, i, x.pages.get(i).hold())
		}
		f.size, f.safeSize = x.size, x.size
		f.recount()
	}
	d.w.Tracef("%s: an older image of %s is restored", d.node.name, im.dir)
}
