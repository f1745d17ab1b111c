"""Every field there is, with its meaning, unit and allowed values.

Other configs start from `get_config()` here and change what they need.
`:arg` after a config's name chooses a structure, `--config.section.field=value`
sets a leaf. Tuples are written as `--config.data.image_size=96,96`. The default
of a new field must be what was done before it: older workdirs are read with it.
"""

from unet_jax.config.fields import ConfigDict


def get_config() -> ConfigDict:
  """Returns the whole tree; the set of fields is fixed from here on."""
  config = ConfigDict()
  # Root of every random choice: initialisation, data order, augmentation,
  # dropout, hold-out. The same seed on the same machine repeats a run exactly.
  config.seed = 0

  config.data = data = ConfigDict()
  # `tfds` (TensorFlow Datasets), `folder` (images/ and masks/) or `shapes`
  # (drawn on the fly; volumes too).
  data.source = 'shapes'
  # folder: the folder. tfds: '' downloads; otherwise a local copy in the layout
  # of the original archives. shapes: not used.
  data.dir = ''
  # Where downloads, TFDS sets, prepared arrays and compiled programs are kept;
  # '' is $XDG_CACHE_HOME/unet_jax or ~/.cache/unet_jax.
  data.cache_dir = ''
  # tfds: name of the data set, and its features that hold image and mask.
  data.name = 'oxford_iiit_pet'
  data.image_key = 'image'
  data.mask_key = 'segmentation_mask'
  # tfds: the feature that numbers the instances (0: none), or ''. folder: files
  # in instances/ beside images/ and masks/. Only loss.weight_map uses them.
  data.instance_key = ''
  # Splits to train on and to evaluate on while training. tfds: any TFDS split,
  # `train[:90%]` too. folder: `train`, `val`, `test` where they exist. shapes:
  # `train`, `test`. `auto`: `val`, else `test`, else a part held out of
  # `train`.
  data.train_split = 'train'
  data.eval_split = 'auto'
  # folder without a `val` or `test`: the fraction of `train` that is held out
  # as `val`, chosen by `seed` (`random`; `folder`: whole folders, as those of
  # patients) or as a block at the end in the order of the names (`last`: stacks
  # and videos, whose neighbours look alike). 0: none; eval_split names a split.
  data.val_fraction = 0.2
  data.holdout = 'random'
  # folder: the part of the stems that an image and its mask share, as in
  # `{stem}_scan` and `{stem}_mask`. '': equal stems or, where this is the only
  # way to pair all files one to one, what differs in all of them alike.
  data.image_pattern = ''
  data.mask_pattern = ''
  # Cross-validation, for every source: train_split, of which nothing else is
  # held out, is cut into num_folds parts of nearly equal size, by `seed` or as
  # blocks in order (data.holdout); 0: no folds. The name of train_split then
  # means all of it but part number `fold` (from 0), `auto` that part, `fold_0`,
  # `fold_1` and so on each part; other splits are those of the source.
  data.num_folds = 0
  # --mode=cross_validate goes through all of them.
  data.fold = 0
  # shapes: how many images are drawn for `train` and for `test`.
  data.num_train = 2000
  data.num_eval = 400
  # Height and width of what enters the network, in pixels; depth, height and
  # width where model.spatial_dims is 3.
  data.image_size = (64, 64)
  # Channels of what enters the network: 1 (grey) or 3 (RGB).
  data.num_channels = 3
  # 1: one sigmoid channel, background against foreground. Otherwise softmax.
  data.num_classes = 4
  # A name for each class (two names where num_classes is 1); () numbers them.
  data.class_names = ()
  # Table from mask values to classes: ((value, class), ...); a value may be an
  # (r, g, b) colour, or 'others' for all that are in no other entry (of ids of
  # objects: ((0, 0), ('others', 1)); ('others', 'nearest') gives each the class
  # of the nearest value), or 'transparent' for pixels that alpha hides; a class
  # may be 255, which is ignored in losses and metrics. () means that the values
  # are the classes. Of palette files the colours are looked up where the table
  # has colours, otherwise the indices, which must then have the same colours in
  # all files.
  data.mask_values = ()
  # Which stored values become 0 and 255: `dtype`, the ends of the type (floats:
  # 0 and 1; other types than these and unsigned ones of up to 16 bits have
  # none), `range`, intensity_range (low, high) for the whole set, or `image`,
  # each image's own minimum and maximum (8 bit: as `dtype`). --mode=inspect
  # measures a range.
  data.intensity = 'dtype'
  data.intensity_range = ()
  # Values of images that are no data, such as -9999, nan, inf: such pixels are
  # ignored in the mask, left out of statistics and of the sums of `augment`
  # (as are all ignored pixels then), and filled with data.mean.
  data.nodata = ()
  # Files of several images (pages of a TIFF, frames of an animation): `one`
  # refuses them, `images` makes each an image of its own; a mask has as many.
  data.pages = 'one'
  # Which bands of an image become the num_channels channels, numbered from 1,
  # the one tagged as alpha last; () is for files that have as many as needed.
  data.bands = ()
  # Images with alpha that is not opaque everywhere: `refuse`, `drop`, or
  # `nodata` (fully transparent pixels are ignored in the mask). Masks, too,
  # unless mask_values has 'transparent'.
  data.alpha = 'refuse'
  # Tags that turn an image for display (EXIF, TIFF): `stored` applies none,
  # `upright` turns image and mask, each by its own.
  data.orientation = 'stored'
  # To image_size: `stretch` (aspect ratio lost), `pad` (fit inside, the rest 0
  # and ignored in the mask), `crop` (cover, cut at the centre) or `patch`:
  # images keep their size, training draws windows of image_size, evaluation
  # covers each image with them. Images smaller than that are mirrored, and
  # ignored in the mask there.
  data.resize = 'stretch'
  # patch: the fraction of windows that are centred on a pixel of a class, drawn
  # alike among the sample_classes (names; () means all but the first) that the
  # split has, in any image that has it. The others lie anywhere, more of them
  # in larger images.
  data.foreground_fraction = 0.33
  data.sample_classes = ()
  # Per channel, of values in 0..1: the network sees (value - mean) / std.
  data.mean = (0.5, 0.5, 0.5)
  data.std = (0.25, 0.25, 0.25)
  # Images in an update, over all devices, processes and accumulation steps.
  data.batch_size = 16
  # `disk`: prepared arrays built once and memory-mapped; `memory`: built in
  # memory at each start; `none`: decoded at each access.
  data.cache = 'disk'
  # Threads that decode and read; 0: one per core.
  data.num_workers = 0
  # A file that cannot be decoded: `stop`, or `skip` (the pair is skipped and
  # listed).
  data.on_error = 'stop'
  # Before training: look at the prepared arrays. Images that are in both splits
  # and sets of which all masks are of one class stop the run; masks that seem
  # flipped, moved or another image's are warned of (see --mode=inspect).
  data.check = True
  # Checks to leave out, there and in --mode=inspect: names of fields.CHECKS,
  # such as `moved`; each warning names its own.
  data.skip_checks = ()
  # --mode=inspect: write the suggested config to WORKDIR/suggested.py.
  data.suggest = False

  config.augment = augment = ConfigDict()
  # Probabilities, per image; all of it runs on the device inside the step, in
  # the order of unet_jax/data/augment.py. Ranges are (low, high). Volumes are
  # flipped along W and H, and take what changes values but no blur or cutout.
  augment.flip_horizontal = 0.5
  augment.flip_vertical = 0.0
  # Of a turn by 90, 180 or 270 degrees; needs square images.
  augment.rotate_90 = 0.0
  # How affine, crop and elastic, which together resample an image once, look up
  # what lies between pixels: `bilinear` or `bicubic`. Masks: always nearest.
  augment.interpolation = 'bilinear'
  # Pixels outside the image: `mirror`, or `ignore`, where the image is
  # mirrored too but the mask is 255.
  augment.border = 'mirror'
  augment.affine = ConfigDict()
  # Probability, per image, as in all the sections that follow; 0: off.
  augment.affine.probability = 0.0
  # Degrees, counter-clockwise (nnU-Net, Isensee et al. 2021: -180 to 180).
  augment.affine.rotation = (-15.0, 15.0)
  # Factor of both sides, drawn evenly on a log scale (nnU-Net's range).
  augment.affine.scale = (0.7, 1.4)
  # Degrees by which columns lean.
  augment.affine.shear = (-10.0, 10.0)
  # Shares of height and width, one drawn for each.
  augment.affine.translation = (-0.1, 0.1)
  augment.elastic = ConfigDict()
  augment.elastic.probability = 0.0
  # Nodes along each axis at which displacements are drawn, and their standard
  # deviation in pixels (the 2015 paper: 3, and 10 in images of 512 px).
  augment.elastic.grid = 3
  augment.elastic.sigma = (10.0, 10.0)
  augment.crop = ConfigDict()
  augment.crop.probability = 0.0
  # Share of the image's area that is cut out and zoomed to the full size
  # (Szegedy et al. 2015 start at 0.08, for classes of whole images).
  augment.crop.area = (0.25, 1.0)
  # Width to height, over that of the image; evenly on a log scale (the same).
  augment.crop.aspect = (0.75, 1.3333)
  # Factor of the values (nnU-Net).
  augment.brightness = ConfigDict()
  augment.brightness.probability = 0.0
  augment.brightness.range = (0.75, 1.25)
  # Factor of their distance from the image's mean grey (nnU-Net).
  augment.contrast = ConfigDict()
  augment.contrast.probability = 0.0
  augment.contrast.range = (0.75, 1.25)
  # Factor of their distance from the pixel's own grey; colour images only.
  augment.saturation = ConfigDict()
  augment.saturation.probability = 0.0
  augment.saturation.range = (0.6, 1.4)
  # Degrees on the circle of hues; colour images only.
  augment.hue = ConfigDict()
  augment.hue.probability = 0.0
  augment.hue.range = (-18.0, 18.0)
  # Exponent of the values as shares of 255; evenly on a log scale (nnU-Net).
  augment.gamma = ConfigDict()
  augment.gamma.probability = 0.0
  augment.gamma.range = (0.7, 1.5)
  # Standard deviation of a Gaussian kernel, in pixels (nnU-Net).
  augment.blur = ConfigDict()
  augment.blur.probability = 0.0
  augment.blur.range = (0.5, 1.0)
  # Standard deviation of Gaussian noise, of 255.
  augment.noise = ConfigDict()
  augment.noise.probability = 0.0
  augment.noise.range = (0.0, 15.0)
  # Side of a square that is covered with data.mean, as a share of the shorter
  # edge (DeVries and Taylor 2017: 0.5 for CIFAR-10, 0.25 for CIFAR-100).
  augment.cutout = ConfigDict()
  augment.cutout.probability = 0.0
  augment.cutout.range = (0.1, 0.5)
  # The mask under it: `keep`, or `ignore` (255).
  augment.cutout.mask = 'keep'

  config.model = model = ConfigDict()
  # 2: images. 3: volumes, with all that is said here of pixels and squares for
  # voxels and cubes (Çiçek et al. 2016, arXiv 1606.06650); data.source: shapes.
  model.spatial_dims = 2
  # Number of 2x downsamplings, 0 to 6.
  model.depth = 3
  # Stage i has base_features * 2**i channels, at most max_features; or their
  # numbers one by one, depth + 1 of them, the last is the bottleneck's.
  model.base_features = 16
  model.max_features = 1024
  model.features = ()
  # Convolutions per stage, and their side in pixels (odd).
  model.convs = 2
  model.kernel_size = 3
  # `plain`, or `residual`: a stage's input is added before its last activation
  # (He et al. 2016, arXiv 1512.03385; Zhang et al. 2018, arXiv 1711.10684),
  # through a 1x1 convolution where the channels differ.
  model.block = 'plain'
  # Squeeze-and-excitation at the end of each stage: the factor by which its
  # hidden layer is narrower (16 in Hu et al. 2018, arXiv 1709.01507); 0: off.
  model.squeeze_excite = 0
  # `none`, or `space_to_depth`: 2x2 pixels become one of four times the
  # channels, and each logit four at the end. All stages run at half the size;
  # for TPUs, whose products want many channels (as in MLPerf's ResNet on them,
  # and Ridnik et al. 2021, arXiv 2003.13630). If the first stage has far
  # fewer channels than the 4 logits per class (8 in 3-D), the logits become
  # correlated and rare classes may not be learned.
  model.stem = 'none'
  # `max` or `average` (2x2), or `conv`: learned, 2x2, stride 2 (Milletari et
  # al. 2016, arXiv 1606.04797).
  model.downsample = 'max'
  # `transpose` (2x2, stride 2), `bilinear`, `bilinear_corners` (the corner
  # pixels stay in place: align_corners=True of PyTorch), `nearest` or
  # `pixel_shuffle`; the last four are followed by a convolution of
  # upsample_kernel x upsample_kernel pixels (1, 2 or 3) that halves the
  # channels. 0: by none; a stage's last convolution halves them beforehand.
  model.upsample = 'transpose'
  model.upsample_kernel = 1
  # How the decoder joins the encoder's features: `concat`, `add`, `none`,
  # or `attention`: concat behind gates that the coarser stage controls (Oktay
  # et al. 2018, arXiv 1804.03999), none at the first stage, as there.
  model.skip = 'concat'
  # `none`, `batch`, `group` (norm_groups groups, fewer where the channels do
  # not divide), `instance` or `layer`; after each convolution
  # of a stage.
  model.norm = 'batch'
  model.norm_groups = 8
  # Added to the variance; Keras' own default is 1e-3.
  model.norm_epsilon = 1e-5
  # `relu`, `leaky_relu`, `elu`, `gelu` or `silu`.
  model.activation = 'relu'
  # Rate of the dropout at the end of the encoder, 0 to below 1, and how many of
  # its deepest stages end in it: 1 is the bottleneck alone; with 2, so does the
  # stage above, before its pooling and its skip.
  model.dropout = 0.0
  model.dropout_stages = 1
  # Weights of the losses of further heads at decoder stages 1, 2, ..., at 1/2,
  # 1/4, ... of the size, in training only (Lee et al. 2015, arXiv 1409.5185;
  # Dou et al. 2017, for U-Nets nnU-Net's 0.5, 0.25, ...); (): none.
  model.deep_supervision = ()
  # `same`: output as large as the input, any size. `valid`: the 2015 paper's
  # unpadded convolutions; the output is smaller, the mask's centre is used, and
  # every logit is that of a larger image (so that interpolations lose a pixel
  # on each side; not for bilinear_corners, nor an upsample_kernel of 2).
  model.padding = 'same'
  # Of activations and products: `float32` or `bfloat16`. Parameters, norm
  # statistics, logits and losses are float32 either way.
  model.dtype = 'float32'
  # Of float32 products on chips that round them (TPUs to bfloat16): `default`,
  # `high`, or `highest`: true float32, at several times the products' time.
  model.precision = 'default'
  # Recompute each stage's activations in the backward pass: less memory, about
  # a third more time.
  model.remat = False

  config.loss = loss = ConfigDict()
  # The loss is the sum of these terms, each times its weight; 0: off.
  loss.weights = ConfigDict()
  loss.weights.cross_entropy = 1.0
  loss.weights.focal = 0.0
  loss.weights.hard_pixels = 0.0
  loss.weights.dice = 0.0
  loss.weights.generalized_dice = 0.0
  loss.weights.tversky = 0.0
  loss.weights.lovasz = 0.0
  loss.weights.boundary = 0.0
  loss.weights.cl_dice = 0.0
  # One factor per class (two where num_classes is 1), or () for equal ones.
  loss.class_weights = ()
  # Weights of the pixels in the first three: `none`, or `border`, those of
  # the 2015 paper: border_weight * exp(-(d1 + d2)^2 / (2 border_sigma^2)) is
  # added between instances, d1 and d2 the distances in pixels (of what enters
  # the network) to the two nearest. Instances are those of the data (see
  # data.instance_key), otherwise the connected parts (of 4 neighbours) of each
  # class but the first.
  loss.weight_map = 'none'
  loss.border_weight = 10.0
  loss.border_sigma = 5.0
  # Base weight of a pixel: `none` is 1; `image` the inverse frequency of its
  # class in its image, scaled to mean 1 (also without borders).
  loss.balance = 'none'
  # Cross-entropy against (1 - s) * one_hot + s / num_classes, 0 to below 1.
  loss.label_smoothing = 0.0
  # Focal loss: the power of 1 - p; 0 makes it the cross-entropy.
  loss.focal_gamma = 2.0
  # Hard pixels: the part of an image's pixels that count.
  loss.hard_fraction = 0.25
  # Tversky: weights of pixels that are wrongly in a class, and of missing ones.
  loss.tversky = (0.3, 0.7)
  # clDice: erosions, at least half the width in pixels of what is thin.
  loss.skeleton_steps = 5

  config.optimizer = optimizer = ConfigDict()
  # `adamw` or `sgd`.
  optimizer.name = 'adamw'
  # Peak learning rate; warmup_steps linear steps up to it (-1: 50, but at most
  # an eighth of the schedule), then `cosine`, `linear` (both down to end_factor
  # times the peak at step decay_steps, and from there on constant) or
  # `constant`.
  optimizer.learning_rate = 2e-3
  optimizer.warmup_steps = -1
  optimizer.schedule = 'cosine'
  optimizer.end_factor = 0.0
  # 0: train.num_steps, with which the schedule is stretched when a run goes on
  # for longer.
  optimizer.decay_steps = 0
  # adamw: decay rates of the two moments, and the term in the denominator.
  optimizer.b1 = 0.9
  optimizer.b2 = 0.999
  optimizer.eps = 1e-8
  # sgd.
  optimizer.momentum = 0.9
  optimizer.nesterov = False
  # Decoupled, on kernels only (not on biases nor norm parameters).
  optimizer.weight_decay = 1e-4
  # Gradients are scaled down to this global norm; 0: off.
  optimizer.clip_norm = 1.0
  # The batch is run in this many parts, one after the other, with the gradients
  # summed: memory of a part, gradient of the whole (but batch norm takes the
  # statistics of each part).
  optimizer.accumulate_steps = 1
  # Exponential moving average of parameters (and norm statistics), used to
  # evaluate; the rate is min(ema_decay, (1 + step) / (10 + step)); 0: off.
  optimizer.ema_decay = 0.99

  config.train = train = ConfigDict()
  # Updates of the parameters.
  train.num_steps = 400

  config.eval = evaluation = ConfigDict()
  # Steps between evaluations of the whole eval split; 0: only at the end.
  evaluation.every = 200
  # --mode=evaluate: the split, named as in data.eval_split; '' is that one.
  evaluation.split = ''
  # --mode=evaluate: at which resolution masks are compared. `network`: as they
  # are prepared, which is what evaluations during the training do; `original`:
  # as they are stored, with the logits brought back to the size of each image.
  evaluation.resolution = 'network'
  # `ema` (where the run has one) or `raw` parameters.
  evaluation.params = 'ema'
  # --mode=evaluate: how many of the worst, median and best images are shown.
  evaluation.num_examples = 6
  # Classes that together are the foreground of a further, binary score, by
  # name: ('pet', 'border'); (): none.
  evaluation.foreground = ()
  # --mode=evaluate. Boundary IoU: how far its region goes in from the outline,
  # as a share of the image's diagonal (Cheng et al. 2021, arXiv 2103.16562).
  evaluation.boundary_ratio = 0.02
  # Width of the band on either side of the mask's outlines in which IoU is
  # measured too, and the distance up to which edges agree in the normalised
  # surface distance; in pixels.
  evaluation.band = 3.0
  evaluation.tolerance = 2.0
  # Name of a class whose connected parts are objects (instances, where the data
  # have them): adds V_rand, V_info and average precision; '': none.
  evaluation.instances = ''
  # Bins of the confidence in the calibration error (Guo et al. 2017, arXiv
  # 1706.04599: 15).
  evaluation.calibration_bins = 15
  # How often the images are drawn again for 95 % intervals; 0: no intervals.
  evaluation.bootstrap = 1000

  config.inference = inference = ConfigDict()
  # --mode=evaluate and predict, and unet_jax.load. Averages of probabilities
  # over views of each image: mirrored (`horizontal`, `vertical`), turned by 0,
  # 90, 180 and 270 degrees (square windows only), and scaled.
  inference.flips = ()
  inference.rotate_90 = False
  inference.scales = (1.0,)
  # And over networks: workdirs whose parameters are averaged with, chosen as
  # those of --workdir are (checkpoint.which, eval.params).
  inference.ensemble = ()
  # Where a window slides over the image (data.resize `patch` and `crop`): its
  # height and width, () for data.image_size; the share of it that the next one
  # covers too; and how they are blended: `gaussian` (nnU-Net) or `constant`.
  # Windows of `valid` networks lie side by side instead.
  inference.window = ()
  inference.overlap = 0.5
  inference.blend = 'gaussian'
  # Windows in a step, over all devices; 0: data.batch_size.
  inference.batch_size = 0

  config.inspect = inspect = ConfigDict()
  # --mode=inspect: the splits to go through, () for data.train_split and
  # data.eval_split.
  inspect.splits = ()
  # Examples that the report shows, the most suspicious first.
  inspect.num_examples = 24
  # Also build the network and do one step on real images, for its loss,
  # gradient and the images as it gets them: a minute, where the rest is
  # seconds.
  inspect.network = False

  config.predict = predict = ConfigDict()
  # --mode=predict: an image, a folder of images (or with them in images/), or a
  # pattern such as 'DIR/*.png'.
  predict.input = ''
  # The folder of all that is written; '' is WORKDIR/predictions. Masks are in
  # masks/ and have the values of data.mask_values, the first of each class.
  predict.output = ''
  # Probabilities of all classes, float16, in probabilities/: `none`, `npz`
  # (NumPy), or `tiff`, in tiles.
  predict.probabilities = 'none'
  # Pictures of the images under their classes, in overlays/.
  predict.overlay = False
  # Outlines of the connected parts of each class but the first as GeoJSON, in
  # pixels, in contours/; classes of the whole image are kept in memory.
  predict.contours = False

  config.checkpoint = checkpoint = ConfigDict()
  # Steps between checkpoints; each evaluation and the end save one as well.
  checkpoint.every = 200
  # How many of the newest, and how many of the best by best_metric, are kept.
  checkpoint.keep_latest = 2
  checkpoint.keep_best = 1
  # A metric of the evaluations, larger is better (`-`: smaller, `-eval/loss`).
  checkpoint.best_metric = 'eval/dataset_miou'
  # --mode=evaluate and predict: `latest` or `best`, or the step where it is not
  # -1; `all` averages the predictions of all that are kept.
  checkpoint.which = 'latest'
  checkpoint.step = -1

  config.summary = summary = ConfigDict()
  # --mode=summary: compile the train step too, for its memory and FLOP; without
  # it the table and the drawing take seconds for any network.
  summary.compile = True

  config.plan = plan = ConfigDict()
  # --mode=plan (docs/plan.md): a TPU slice, as v5e:4x4 or v4:2x2x4.
  plan.topology = 'v5e:2x4'
  # What is compiled, minutes each: `train`, `evaluate`, `predict`.
  plan.steps = ('train', 'evaluate', 'predict')
  # Compile for the largest batch that fits; else it is extrapolated.
  plan.largest_batch = False
  # Compare train steps instead, by DATAxFSDPxSPATIAL[:BATCH], or `grid`.
  plan.sweep = ()

  config.weights = weights = ConfigDict()
  # --mode=import: a .pth, .safetensors, .npz, .keras, .weights.h5 or .h5 file.
  weights.path = ''
  # Keras: the order of the inputs of `Concatenate`, `skip_first` or `up_first`;
  # `auto`: as the file says (weights alone do not: skip_first).
  weights.concat = 'auto'

  config.export = export = ConfigDict()
  # --mode=export: the .safetensors file that is written. eval.params and
  # checkpoint.which say which parameters.
  export.path = ''
  # Names and layouts: `unet_jax`, or `milesial` (PyTorch, as in
  # github.com/milesial/Pytorch-UNet).
  export.format = 'unet_jax'

  config.mesh = mesh = ConfigDict()
  # Devices along each axis; -1: all that the others leave. The batch is split
  # over data and fsdp, parameters and optimiser state over fsdp, rows of an
  # image (planes of a volume) over spatial, which needs model.padding=same and
  # must divide the rows, and the devices of a process or be a multiple of them.
  mesh.data = -1
  mesh.fsdp = 1
  mesh.spatial = 1

  config.cpu = cpu = ConfigDict()
  # Convolutions on CPUs: `xla`, or `native`, those of unet_jax/kernels, which
  # the machine's C++ compiler compiles at first use; `auto`: native where that
  # succeeds. Numbers differ by rounding.
  cpu.kernels = 'auto'

  config.log = log = ConfigDict()
  # Steps between lines of metrics.jsonl (and of the log where it is no
  # terminal).
  log.every = 20
  # Also write TensorBoard event files.
  log.tensorboard = True
  # Examples in the plot of predictions; 0: no plots.
  log.num_examples = 6

  return config.lock()
