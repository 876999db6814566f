/* The world around the emulated door.
 *
 *   sim feed DEVICE WIDTH HEIGHT FPS LINK    a camera: writes LINK's YUYV picture, with a little
 *                                            noise as any sensor has; LINK may be switched; a
 *                                            file LINK.same stops the noise
 *   sim bolt LATCH REED JAM                  a bolt: REED (a gpio-sim line's directory) is pulled
 *                                            low while LATCH is inactive and the file JAM absent
 *   sim watch LOG NAME=FILE...               a logic analyser: a line "MS NAME VALUE" for each
 *                                            change of a FILE, MS since boot
 *   sim pin N                                the level of a Raspberry Pi 3's pin, from its
 *                                            register (GPLEV0)
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void nap(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, 0);
}

static int first_byte(const char *path) {
    char c = '?';
    int fd = open(path, O_RDONLY);
    if (fd < 0) return '?';
    if (read(fd, &c, 1) != 1) c = '?';
    close(fd);
    return c;
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) perror(path);
    if (fd >= 0) close(fd);
}

static int feed(char **a) {
    int width = atoi(a[1]), height = atoi(a[2]), fps = atoi(a[3]);
    size_t size = (size_t)width * height * 2;
    char same[4096];
    snprintf(same, sizeof same, "%s.same", a[4]);
    unsigned char *picture = malloc(size), *frame = malloc(size);
    int fd = open(a[0], O_RDWR);
    if (fd < 0) { perror(a[0]); return 1; }
    struct v4l2_format f = {.type = V4L2_BUF_TYPE_VIDEO_OUTPUT};
    f.fmt.pix.width = width;
    f.fmt.pix.height = height;
    f.fmt.pix.pixelformat = V4L2_PIX_FMT_YUYV;
    f.fmt.pix.field = V4L2_FIELD_NONE;
    f.fmt.pix.bytesperline = width * 2;
    f.fmt.pix.sizeimage = size;
    f.fmt.pix.colorspace = V4L2_COLORSPACE_SRGB;
    if (ioctl(fd, VIDIOC_S_FMT, &f)) { perror("VIDIOC_S_FMT"); return 1; }
    struct v4l2_streamparm p = {.type = V4L2_BUF_TYPE_VIDEO_OUTPUT};
    p.parm.output.timeperframe.numerator = 1;
    p.parm.output.timeperframe.denominator = fps;
    ioctl(fd, VIDIOC_S_PARM, &p);
    struct stat before = {0}, now;
    unsigned random = 1;
    int have = 0;
    for (;; nap(1000 / fps)) {
        if (!stat(a[4], &now) && (!have || now.st_ino != before.st_ino)) {
            int in = open(a[4], O_RDONLY);
            have = in >= 0 && read(in, picture, size) == (ssize_t)size;
            if (in >= 0) close(in);
            before = now;
        }
        if (!have) continue;
        if (access(same, F_OK)) {
            memcpy(frame, picture, size);
            for (size_t n = 0; n < size; n += 2) {
                random = random * 1664525u + 1013904223u;
                int luma = frame[n] + (int)(random >> 30) - 1;
                frame[n] = luma < 16 ? 16 : luma > 235 ? 235 : luma;
            }
        }
        if (write(fd, frame, size) != (ssize_t)size) { perror("write"); return 1; }
    }
}

/* A line that is requested with a bias has its pull set to that, as if the resistor had won over the
 * bolt's contact: the contact is stated again whenever it does not hold. */
static int bolt(char **a) {
    char latch[4096], reed[4096], pull[16];
    snprintf(latch, sizeof latch, "%s/value", a[0]);
    snprintf(reed, sizeof reed, "%s/pull", a[1]);
    int home = -1;
    for (;; nap(15)) {
        int active = first_byte(latch) == '1';
        int now = !active && access(a[2], F_OK);
        const char *wanted = now ? "pull-down" : "pull-up";
        memset(pull, 0, sizeof pull);
        int fd = open(reed, O_RDONLY);
        if (fd >= 0 && read(fd, pull, sizeof pull - 1) < 0) perror(reed);
        if (fd >= 0) close(fd);
        if (now != home) nap(40);
        if (now != home || strncmp(pull, wanted, strlen(wanted))) put(reed, wanted);
        home = now;
    }
}

static int watch(char **a) {
    int last[16] = {0};
    FILE *log = fopen(a[0], "a");
    if (!log) { perror(a[0]); return 1; }
    setlinebuf(log);
    for (;; nap(4))
        for (int n = 0; n < 16 && a[1 + n]; n++) {
            char *file = strchr(a[1 + n], '=');
            if (!file) continue;
            int value = first_byte(file + 1);
            if (value == last[n]) continue;
            last[n] = value;
            struct timespec t;
            clock_gettime(CLOCK_BOOTTIME, &t);
            fprintf(log, "%lld %.*s %c\n", t.tv_sec * 1000LL + t.tv_nsec / 1000000,
                    (int)(file - a[1 + n]), a[1 + n], value);
        }
}

static int pin(int n) {
    int fd = open("/dev/mem", O_RDONLY | O_SYNC);
    volatile unsigned *gpio = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0x3f200000);
    if (gpio == MAP_FAILED) { perror("/dev/mem"); return 1; }
    printf("%u\n", gpio[0x34 / 4] >> n & 1);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 7 && !strcmp(argv[1], "feed")) return feed(argv + 2);
    if (argc == 5 && !strcmp(argv[1], "bolt")) return bolt(argv + 2);
    if (argc >= 4 && !strcmp(argv[1], "watch")) return watch(argv + 2);
    if (argc == 3 && !strcmp(argv[1], "pin")) return pin(atoi(argv[2]));
    fprintf(stderr, "see the head of sim.c\n");
    return 2;
}
