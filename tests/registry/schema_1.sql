-- A store as the first schema wrote it: what every later schema must open.
BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'inlay','m001_registry','2026-11-21 09:22:07.145657+00:00');
CREATE TABLE "bases" (
   "id" INTEGER PRIMARY KEY,
   "weights" TEXT NOT NULL,
   "prompt" TEXT NOT NULL,
   "name" TEXT NOT NULL,
   "revision" TEXT,
   "architecture" TEXT NOT NULL,
   "source" TEXT NOT NULL,
   "tensors" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "bases" VALUES(1,'sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0','sha256:215972407f07de54bc6971137d056b3d966c705c4ab500c882a8ba128334e4ed','base',NULL,'LlamaForCausalLM','/models/base','sha256:7284646adb79cd2c6507fc503598b874b94bc7d2c4b5e11ee193e8ea171249fa','2026-11-21T09:22:07.154881Z');
CREATE TABLE "evals" (
   "id" INTEGER PRIMARY KEY,
   "key" TEXT NOT NULL,
   "subject" TEXT NOT NULL,
   "base_weights" TEXT NOT NULL,
   "base_prompt" TEXT NOT NULL,
   "suite" TEXT NOT NULL,
   "suite_name" TEXT NOT NULL,
   "metric" TEXT NOT NULL,
   "protocol" TEXT NOT NULL,
   "protocol_detail" TEXT NOT NULL,
   "score" REAL NOT NULL,
   "n" INTEGER NOT NULL,
   "low" REAL NOT NULL,
   "high" REAL NOT NULL,
   "outcomes" TEXT NOT NULL,
   "splits" TEXT NOT NULL,
   "device" TEXT NOT NULL,
   "versions" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "evals" VALUES(1,'sha256:53d85bacd4a310dc3ea70e7a58d4f91b2629ada1fc3ea1b6c9cb6895d91074f0','sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659','sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0','sha256:215972407f07de54bc6971137d056b3d966c705c4ab500c882a8ba128334e4ed','sha256:cc462989fcbee0f15620c1c3ce603864a5401e619cb3e805cd5c6500fa7e6767','general','exact_match/1','sha256:f09ad0d2753aec8340f359a4c552ada7427786483f26a86ce5a13efa80b0e86d','{"template":"chat"}',0.75,4,0.65,0.85,'b:1101','{}','','{}','2026-11-21T09:22:07.175071Z');
INSERT INTO "evals" VALUES(2,'sha256:e56f1fb4e693139ea392b12ceec6bd3c6505255b33564537d3353393f3e9136c','base','sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0','sha256:215972407f07de54bc6971137d056b3d966c705c4ab500c882a8ba128334e4ed','sha256:cc462989fcbee0f15620c1c3ce603864a5401e619cb3e805cd5c6500fa7e6767','general','exact_match/1','sha256:f09ad0d2753aec8340f359a4c552ada7427786483f26a86ce5a13efa80b0e86d','{"template":"chat"}',1.0,4,0.9,1.0,'b:1111','{}','','{}','2026-11-21T09:22:07.175832Z');
CREATE TABLE "journal" (
   "seq" INTEGER PRIMARY KEY,
   "at" TEXT NOT NULL,
   "who" TEXT NOT NULL,
   "verb" TEXT NOT NULL,
   "name" TEXT NOT NULL REFERENCES "names"("name"),
   "alias" TEXT,
   "moves" INTEGER NOT NULL,
   "from_number" INTEGER,
   "from_ref" TEXT,
   "from_digest" TEXT,
   "to_number" INTEGER,
   "to_ref" TEXT,
   "to_digest" TEXT,
   "why" TEXT NOT NULL,
   "verdict" TEXT,
   "detail" TEXT NOT NULL,
   "previous" TEXT NOT NULL,
   "hash" TEXT NOT NULL
) STRICT;
INSERT INTO "journal" VALUES(1,'2026-11-21T09:22:07.155557Z','anna','add','legal',NULL,0,NULL,NULL,NULL,1,'legal@v1','sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659','seed 1',NULL,'{"base":"sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0"}','sha256:0000000000000000000000000000000000000000000000000000000000000000','sha256:9e7b351092be5b726dd0c41cc5099d4d93235e69a1d18e49e1926ff01c0b0abd');
INSERT INTO "journal" VALUES(2,'2026-11-21T09:22:07.161194Z','anna','add','legal',NULL,0,NULL,NULL,NULL,2,'legal@v2','sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953','seed 2',NULL,'{"base":"sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0"}','sha256:9e7b351092be5b726dd0c41cc5099d4d93235e69a1d18e49e1926ff01c0b0abd','sha256:f69141f8d7498297c1f71ea6417edd06413e1653a3f56b035f2a700d9de99ece');
INSERT INTO "journal" VALUES(3,'2026-11-21T09:22:07.166332Z','anna','add','legal',NULL,0,NULL,NULL,NULL,3,'legal@v3','sha256:415eff08c04fad07defb3f99694a78992bded703b287bf5f1a46763f73ec8c71','seed 3',NULL,'{"base":"sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0"}','sha256:f69141f8d7498297c1f71ea6417edd06413e1653a3f56b035f2a700d9de99ece','sha256:5f7b0e67f4752026e51e77ce2abc0d69b9b56364291dd9842136423215ae0877');
INSERT INTO "journal" VALUES(4,'2026-11-21T09:22:07.172547Z','anna','add','style',NULL,0,NULL,NULL,NULL,1,'style@v1','sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3','',NULL,'{"base":"sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0"}','sha256:5f7b0e67f4752026e51e77ce2abc0d69b9b56364291dd9842136423215ae0877','sha256:c69d9620f3de319aa538b487b863a759325935c497c30671eadfad381628fc70');
INSERT INTO "journal" VALUES(5,'2026-11-21T09:22:07.178155Z','anna','promote','legal','prod',1,NULL,NULL,NULL,1,'legal@v1','sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659','first',NULL,'{}','sha256:c69d9620f3de319aa538b487b863a759325935c497c30671eadfad381628fc70','sha256:6cdb29e7719f923fc43f4fd1370b2d86786cef7cb2e0170aa496f372ce4e2a9b');
INSERT INTO "journal" VALUES(6,'2026-11-21T09:22:07.178701Z','anna','promote','legal','prod',1,1,'legal@v1','sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659',2,'legal@v2','sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953','',NULL,'{}','sha256:6cdb29e7719f923fc43f4fd1370b2d86786cef7cb2e0170aa496f372ce4e2a9b','sha256:4539799ca2ac9d2eb6ea1f58b93f103789243b34597a9f6c0bec51554f00bd95');
INSERT INTO "journal" VALUES(7,'2026-11-21T09:22:07.179172Z','anna','promote','style','prod',1,NULL,NULL,NULL,1,'style@v1','sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3','',NULL,'{}','sha256:4539799ca2ac9d2eb6ea1f58b93f103789243b34597a9f6c0bec51554f00bd95','sha256:7b79c737e9ecb9c839cc51f7c6be2e5a9de4ee5f98f344cefe7a208290370d84');
INSERT INTO "journal" VALUES(8,'2026-11-21T09:22:07.180764Z','anna','lock','acme',NULL,0,NULL,NULL,NULL,1,'acme@v1','sha256:532213c1383a5a82187e7e322b7027a4a2eedacfe16352b11275e3428c7ae52a','',NULL,'{}','sha256:7b79c737e9ecb9c839cc51f7c6be2e5a9de4ee5f98f344cefe7a208290370d84','sha256:14140c652d80f01892cc1f1ef9e398c8ec6174c4b017892d1c24489a91e19114');
INSERT INTO "journal" VALUES(9,'2026-11-21T09:22:07.181730Z','anna','promote','acme','prod',1,NULL,NULL,NULL,1,'acme@v1','sha256:532213c1383a5a82187e7e322b7027a4a2eedacfe16352b11275e3428c7ae52a','',NULL,'{}','sha256:14140c652d80f01892cc1f1ef9e398c8ec6174c4b017892d1c24489a91e19114','sha256:2f6854fc3109372566b1b6671340e759398373a21f3a1812c42b7fb5b77d84e8');
INSERT INTO "journal" VALUES(10,'2026-11-21T09:22:07.183066Z','anna','lock','big',NULL,0,NULL,NULL,NULL,1,'big@v1','sha256:4079e08abd17e0e768571b846fd9746d99e73a51dcd6d5e81e7bb3b1e2f4b680','',NULL,'{}','sha256:2f6854fc3109372566b1b6671340e759398373a21f3a1812c42b7fb5b77d84e8','sha256:54e1b0da19b71b1cee7c2f9c492fbbb8afd15f5a1a525d0207c7c4b86b2b30b1');
INSERT INTO "journal" VALUES(11,'2026-11-21T09:22:07.183815Z','anna','promote','big','prod',1,NULL,NULL,NULL,1,'big@v1','sha256:4079e08abd17e0e768571b846fd9746d99e73a51dcd6d5e81e7bb3b1e2f4b680','',NULL,'{}','sha256:54e1b0da19b71b1cee7c2f9c492fbbb8afd15f5a1a525d0207c7c4b86b2b30b1','sha256:6515ed236d6f9d7c49ea42895bafdb67b94b0037b6b54a21b1ecde1639bb5524');
INSERT INTO "journal" VALUES(12,'2026-11-21T09:22:07.184448Z','anna','promote','legal','prod',1,2,'legal@v2','sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953',3,'legal@v3','sha256:415eff08c04fad07defb3f99694a78992bded703b287bf5f1a46763f73ec8c71','',NULL,'{}','sha256:6515ed236d6f9d7c49ea42895bafdb67b94b0037b6b54a21b1ecde1639bb5524','sha256:44af70d863489c3f105a30c80ff7200c98f3643b594529a47ea2b3f5b41b9d92');
INSERT INTO "journal" VALUES(13,'2026-11-21T09:22:07.185155Z','anna','rollback','legal','prod',1,3,'legal@v3','sha256:415eff08c04fad07defb3f99694a78992bded703b287bf5f1a46763f73ec8c71',2,'legal@v2','sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953','worse',NULL,'{"entry":6}','sha256:44af70d863489c3f105a30c80ff7200c98f3643b594529a47ea2b3f5b41b9d92','sha256:a5337bff8333e7d087b1f6607b80fa7c29bc7c60775c7323934deffd77a4fea9');
INSERT INTO "journal" VALUES(14,'2026-11-21T09:22:07.185784Z','anna','yank','legal',NULL,0,3,'legal@v3','sha256:415eff08c04fad07defb3f99694a78992bded703b287bf5f1a46763f73ec8c71',NULL,NULL,NULL,'bad data',NULL,'{}','sha256:a5337bff8333e7d087b1f6607b80fa7c29bc7c60775c7323934deffd77a4fea9','sha256:158b3e8d56e677616cce70299a1351ca85978090647b017c02a2dedf9db2aca0');
CREATE TABLE "lock_members" (
   "lock" INTEGER NOT NULL REFERENCES "locks"("id"),
   "position" INTEGER NOT NULL,
   "path" TEXT NOT NULL,
   "version" INTEGER REFERENCES "versions"("id"),
   "used_lock" INTEGER REFERENCES "locks"("id"),
   "digest" TEXT NOT NULL,
   "weight" REAL NOT NULL,
   PRIMARY KEY ("lock", "position")
) STRICT;
INSERT INTO "lock_members" VALUES(1,0,'stack.0',2,NULL,'sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953',1.0);
INSERT INTO "lock_members" VALUES(1,1,'stack.1',4,NULL,'sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3',0.5);
INSERT INTO "lock_members" VALUES(2,0,'stack.0',NULL,1,'sha256:532213c1383a5a82187e7e322b7027a4a2eedacfe16352b11275e3428c7ae52a',1.0);
INSERT INTO "lock_members" VALUES(2,1,'stack.0.stack.0',2,NULL,'sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953',1.0);
INSERT INTO "lock_members" VALUES(2,2,'stack.0.stack.1',4,NULL,'sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3',0.5);
CREATE TABLE "locks" (
   "id" INTEGER PRIMARY KEY,
   "name" TEXT NOT NULL REFERENCES "names"("name"),
   "number" INTEGER NOT NULL,
   "digest" TEXT NOT NULL,
   "base" INTEGER NOT NULL REFERENCES "bases"("id"),
   "recipe" TEXT NOT NULL,
   "tree" TEXT NOT NULL,
   "guard" TEXT,
   "provenance" TEXT,
   "author" TEXT NOT NULL,
   "why" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "locks" VALUES(1,'acme',1,'sha256:532213c1383a5a82187e7e322b7027a4a2eedacfe16352b11275e3428c7ae52a',1,'{"stack": ["legal@prod", {"use": "style@prod", "weight": 0.5}]}','{"stack":[{"name":"legal@v2","use":"sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953","weight":1.0},{"name":"style@v1","use":"sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3","weight":0.5}]}',NULL,NULL,'anna','','2026-11-21T09:22:07.180327Z');
INSERT INTO "locks" VALUES(2,'big',1,'sha256:4079e08abd17e0e768571b846fd9746d99e73a51dcd6d5e81e7bb3b1e2f4b680',1,'{"stack": ["acme@prod"]}','{"stack":[{"lock":"sha256:532213c1383a5a82187e7e322b7027a4a2eedacfe16352b11275e3428c7ae52a","name":"acme@v1","stack":[{"name":"legal@v2","use":"sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953","weight":1.0},{"name":"style@v1","use":"sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3","weight":0.5}]}]}',NULL,NULL,'anna','','2026-11-21T09:22:07.182638Z');
CREATE TABLE "names" (
   "name" TEXT PRIMARY KEY,
   "kind" TEXT NOT NULL,
   "owner" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "names" VALUES('legal','adapter','anna','2026-11-21T09:22:07.154408Z');
INSERT INTO "names" VALUES('style','adapter','anna','2026-11-21T09:22:07.172001Z');
INSERT INTO "names" VALUES('acme','variant','anna','2026-11-21T09:22:07.180073Z');
INSERT INTO "names" VALUES('big','variant','anna','2026-11-21T09:22:07.182438Z');
CREATE TABLE "reports" (
   "id" INTEGER PRIMARY KEY,
   "subject" TEXT NOT NULL,
   "kind" TEXT NOT NULL,
   "object" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "reports" VALUES(1,'sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659','forgetting','sha256:c887b404b8a935ba2cfd81a70f855b97d20d50854a1b9cf4f90943715f41ef7d','2026-11-21T09:22:07.177372Z');
CREATE TABLE "suites" (
   "id" INTEGER PRIMARY KEY,
   "name" TEXT NOT NULL,
   "digest" TEXT NOT NULL,
   "items" TEXT NOT NULL,
   "metric" TEXT NOT NULL,
   "skills" TEXT NOT NULL,
   "n" INTEGER NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "suites" VALUES(1,'general','sha256:cc462989fcbee0f15620c1c3ce603864a5401e619cb3e805cd5c6500fa7e6767','sha256:cc462989fcbee0f15620c1c3ce603864a5401e619cb3e805cd5c6500fa7e6767','exact_match/1','{"all":{"items":4}}',4,'2026-11-21T09:22:07.174312Z');
CREATE TABLE "version_files" (
   "version" INTEGER NOT NULL REFERENCES "versions"("id"),
   "path" TEXT NOT NULL,
   "size" INTEGER NOT NULL,
   "digest" TEXT NOT NULL,
   PRIMARY KEY ("version", "path")
) STRICT;
INSERT INTO "version_files" VALUES(1,'adapter_config.json',108,'sha256:35f14ab19d91a3baab95dc0b356e726e13e11b5d152dc8d7da062c673743f9af');
INSERT INTO "version_files" VALUES(1,'adapter_model.safetensors',1548,'sha256:124cc213970382757478b1489dbbe5ffa673fd3180be65d69a46d6a6da22f962');
INSERT INTO "version_files" VALUES(2,'adapter_config.json',108,'sha256:35f14ab19d91a3baab95dc0b356e726e13e11b5d152dc8d7da062c673743f9af');
INSERT INTO "version_files" VALUES(2,'adapter_model.safetensors',1548,'sha256:5b038cadea5678b7834de643e1fddc6589701c2255ac2007d736f1d073bf0878');
INSERT INTO "version_files" VALUES(3,'adapter_config.json',108,'sha256:35f14ab19d91a3baab95dc0b356e726e13e11b5d152dc8d7da062c673743f9af');
INSERT INTO "version_files" VALUES(3,'adapter_model.safetensors',1548,'sha256:3eab380cf4e0b7c183f707bf49870fc76ff3fca79301551b83fc679182d91b20');
INSERT INTO "version_files" VALUES(4,'adapter_config.json',108,'sha256:35f14ab19d91a3baab95dc0b356e726e13e11b5d152dc8d7da062c673743f9af');
INSERT INTO "version_files" VALUES(4,'adapter_model.safetensors',1548,'sha256:a94cb60bdac72c9fe43a346e14c60202ca36bd70cc12ccae57cfa5dad6e142e3');
CREATE TABLE "versions" (
   "id" INTEGER PRIMARY KEY,
   "name" TEXT NOT NULL REFERENCES "names"("name"),
   "number" INTEGER NOT NULL,
   "digest" TEXT NOT NULL,
   "base" INTEGER NOT NULL REFERENCES "bases"("id"),
   "kind" TEXT NOT NULL,
   "rank" INTEGER NOT NULL,
   "targets" TEXT NOT NULL,
   "parameters" INTEGER NOT NULL,
   "exactness" TEXT NOT NULL,
   "size" INTEGER NOT NULL,
   "trained_on" TEXT,
   "mismatch" INTEGER NOT NULL,
   "run" TEXT,
   "lineage" TEXT,
   "notes" TEXT NOT NULL,
   "author" TEXT NOT NULL,
   "why" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "versions" VALUES(1,'legal',1,'sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659',1,'lora',2,'["q_proj","v_proj"]',128,'exact',1656,NULL,0,NULL,NULL,'["neither a licence nor a model card came with it"]','anna','seed 1','2026-11-21T09:22:07.155201Z');
INSERT INTO "versions" VALUES(2,'legal',2,'sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953',1,'lora',2,'["q_proj","v_proj"]',128,'exact',1656,NULL,0,NULL,NULL,'["neither a licence nor a model card came with it"]','anna','seed 2','2026-11-21T09:22:07.160830Z');
INSERT INTO "versions" VALUES(3,'legal',3,'sha256:415eff08c04fad07defb3f99694a78992bded703b287bf5f1a46763f73ec8c71',1,'lora',2,'["q_proj","v_proj"]',128,'exact',1656,NULL,0,NULL,NULL,'["neither a licence nor a model card came with it"]','anna','seed 3','2026-11-21T09:22:07.165961Z');
INSERT INTO "versions" VALUES(4,'style',1,'sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3',1,'lora',2,'["q_proj","v_proj"]',128,'exact',1656,NULL,0,'sha256:1f1d62fdc82a66857b4dfdcaeffc2bf7209fcec098744490c80eb287c92701cd',NULL,'["neither a licence nor a model card came with it"]','anna','','2026-11-21T09:22:07.172248Z');
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE UNIQUE INDEX "idx_bases_weights_prompt_source"
    ON "bases" ("weights", "prompt", "source");
CREATE UNIQUE INDEX "idx_versions_name_number"
    ON "versions" ("name", "number");
CREATE UNIQUE INDEX "idx_versions_name_digest"
    ON "versions" ("name", "digest");
CREATE INDEX "idx_versions_digest"
    ON "versions" ("digest");
CREATE UNIQUE INDEX "idx_locks_name_number"
    ON "locks" ("name", "number");
CREATE INDEX "idx_locks_name_digest"
    ON "locks" ("name", "digest");
CREATE INDEX "idx_locks_digest"
    ON "locks" ("digest");
CREATE INDEX "idx_lock_members_version"
    ON "lock_members" ("version");
CREATE INDEX "idx_lock_members_used_lock"
    ON "lock_members" ("used_lock");
CREATE INDEX "idx_suites_name"
    ON "suites" ("name");
CREATE INDEX "idx_suites_digest"
    ON "suites" ("digest");
CREATE UNIQUE INDEX "idx_evals_key"
    ON "evals" ("key");
CREATE INDEX "idx_evals_subject_suite"
    ON "evals" ("subject", "suite");
CREATE INDEX "idx_evals_suite"
    ON "evals" ("suite");
CREATE INDEX "idx_reports_subject_kind"
    ON "reports" ("subject", "kind");
CREATE INDEX journal_live ON journal (name, alias, seq) WHERE moves = 1;
CREATE INDEX journal_yanked ON journal (name, from_number) WHERE verb = 'yank';
CREATE INDEX journal_guards ON journal (name, alias, seq) WHERE verb = 'guard';
CREATE INDEX "idx_journal_name_seq"
    ON "journal" ("name", "seq");
CREATE TRIGGER names_refuse_update BEFORE UPDATE ON names BEGIN SELECT RAISE(ABORT, 'names are immutable: update refused'); END;
CREATE TRIGGER names_refuse_delete BEFORE DELETE ON names BEGIN SELECT RAISE(ABORT, 'names are immutable: delete refused'); END;
CREATE TRIGGER bases_refuse_update BEFORE UPDATE ON bases BEGIN SELECT RAISE(ABORT, 'bases are immutable: update refused'); END;
CREATE TRIGGER bases_refuse_delete BEFORE DELETE ON bases BEGIN SELECT RAISE(ABORT, 'bases are immutable: delete refused'); END;
CREATE TRIGGER versions_refuse_update BEFORE UPDATE ON versions BEGIN SELECT RAISE(ABORT, 'versions are immutable: update refused'); END;
CREATE TRIGGER versions_refuse_delete BEFORE DELETE ON versions BEGIN SELECT RAISE(ABORT, 'versions are immutable: delete refused'); END;
CREATE TRIGGER version_files_refuse_update BEFORE UPDATE ON version_files BEGIN SELECT RAISE(ABORT, 'version_files are immutable: update refused'); END;
CREATE TRIGGER version_files_refuse_delete BEFORE DELETE ON version_files BEGIN SELECT RAISE(ABORT, 'version_files are immutable: delete refused'); END;
CREATE TRIGGER locks_refuse_update BEFORE UPDATE ON locks BEGIN SELECT RAISE(ABORT, 'locks are immutable: update refused'); END;
CREATE TRIGGER locks_refuse_delete BEFORE DELETE ON locks BEGIN SELECT RAISE(ABORT, 'locks are immutable: delete refused'); END;
CREATE TRIGGER lock_members_refuse_update BEFORE UPDATE ON lock_members BEGIN SELECT RAISE(ABORT, 'lock_members are immutable: update refused'); END;
CREATE TRIGGER lock_members_refuse_delete BEFORE DELETE ON lock_members BEGIN SELECT RAISE(ABORT, 'lock_members are immutable: delete refused'); END;
CREATE TRIGGER suites_refuse_update BEFORE UPDATE ON suites BEGIN SELECT RAISE(ABORT, 'suites are immutable: update refused'); END;
CREATE TRIGGER suites_refuse_delete BEFORE DELETE ON suites BEGIN SELECT RAISE(ABORT, 'suites are immutable: delete refused'); END;
CREATE TRIGGER evals_refuse_update BEFORE UPDATE ON evals BEGIN SELECT RAISE(ABORT, 'evals are immutable: update refused'); END;
CREATE TRIGGER evals_refuse_delete BEFORE DELETE ON evals BEGIN SELECT RAISE(ABORT, 'evals are immutable: delete refused'); END;
CREATE TRIGGER reports_refuse_update BEFORE UPDATE ON reports BEGIN SELECT RAISE(ABORT, 'reports are immutable: update refused'); END;
CREATE TRIGGER reports_refuse_delete BEFORE DELETE ON reports BEGIN SELECT RAISE(ABORT, 'reports are immutable: delete refused'); END;
CREATE TRIGGER journal_refuse_update BEFORE UPDATE ON journal BEGIN SELECT RAISE(ABORT, 'journal are immutable: update refused'); END;
CREATE TRIGGER journal_refuse_delete BEFORE DELETE ON journal BEGIN SELECT RAISE(ABORT, 'journal are immutable: delete refused'); END;
COMMIT;
PRAGMA user_version = 1;
